"""From run directories to what a person reads; it knows files, and no models."""

from .record import RunRecord as RunRecord
from .record import read_run as read_run
