"""The command line, which `main` runs."""

from .app import app as app
from .app import main as main
