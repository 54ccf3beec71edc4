"""What a run's student and teachers, or any two models, make of the same images."""

from .of_run import analyze_after as analyze_after
from .of_run import analyze_before as analyze_before
