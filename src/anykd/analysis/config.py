"""What is looked at when a run has been trained."""

from pydantic import NonNegativeInt

from anykd.config import FrozenConfig

__all__ = ["AnalysisConfig"]


class AnalysisConfig(FrozenConfig):
    """The ``[analysis]`` table of a recipe: student against teacher, on held-out images."""

    num_samples: NonNegativeInt = 2000
    """Held-out images that are analysed, at most: the same ones in every run on the same data. 0
    analyses nothing."""
    num_examples: NonNegativeInt = 24
    """Images kept, at most, for which student and teacher choose different classes."""
