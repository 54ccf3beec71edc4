"""The ways in which published models were normalised."""

from typing import NamedTuple

__all__ = ["COMMON", "Normalisation"]

Channels = tuple[float, float, float]


class Normalisation(NamedTuple):
    """What is subtracted from RGB in [0, 1], and what divides the rest.

    Attributes:
        name: What it is called.
        mean: Of red, green and blue.
        std: Of red, green and blue.
    """

    name: str
    mean: Channels
    std: Channels

    @property
    def setting(self) -> str:
        """How a recipe asks for it."""
        return f"teacher.mean = {_written(self.mean)} and teacher.std = {_written(self.std)}"


def _written(channels: Channels) -> str:
    return f"{channels[0]:.4g}" if len(set(channels)) == 1 else str(list(channels))


COMMON = (
    Normalisation("ImageNet's mean and std", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Normalisation("mean 0.5 and std 0.5", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    Normalisation("values as they are, in [0, 1]", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    Normalisation("values in [0, 255]", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
)
"""Those that nearly all weights in circulation were trained with."""
