"""Where a feature has its positions, read off its shape; and the way to a map and back."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["SAME_RESOLUTION", "Geometry", "Grid", "read_map", "read_tokens"]

Grid = tuple[int, int]
"""(height, width)."""

SAME_RESOLUTION = 1.5
"""Grids that differ by less than this factor have one resolution: convolutions without padding lose
a pixel or two."""


@dataclass(frozen=True)
class Geometry:
    """How the positions of an image lie in a feature.

    Attributes:
        layout: ``map`` (batch, chan, height, width), ``map_channels_last``, or ``tokens`` (batch,
            tokens, chan), row by row behind the prefix tokens.
        grid: (height, width) in positions.
        num_prefix_tokens: Class, distillation and register tokens.
    """

    layout: Literal["map", "map_channels_last", "tokens"]
    grid: Grid
    num_prefix_tokens: int = 0

    def to_map(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Make a map (batch, chan, height, width) and its prefix tokens of a feature."""
        if self.layout == "map":
            return feature, None
        if self.layout == "map_channels_last":
            return feature.permute(0, 3, 1, 2), None
        count = self.num_prefix_tokens
        stage = feature[:, count:].transpose(1, 2).unflatten(2, self.grid)
        return stage, (feature[:, :count] if count else None)

    def from_map(self, stage: Tensor, prefix: Tensor | None) -> Tensor:
        """Make the feature of a map and its prefix tokens."""
        if self.layout == "map":
            return stage
        if self.layout == "map_channels_last":
            return stage.permute(0, 2, 3, 1)
        tokens = stage.flatten(2).transpose(1, 2)
        return tokens if prefix is None else torch.cat([prefix.to(tokens), tokens], dim=1)


def read_map(
    shape: tuple[int, ...], image_size: Grid, *, before: Geometry | None = None
) -> Geometry | None:
    """Read a shape (batch, ..., ..., ...) as a map of an image, channels first or last.

    Args:
        shape: Of the feature.
        image_size: Of the image, in pixels.
        before: Of an earlier feature, which decides where as many channels as rows fit both ways.

    Example:
        >>> read_map((2, 64, 8, 12), (64, 96)).layout, read_map((2, 8, 12, 64), (64, 96)).grid
        ('map', (8, 12))
    """
    if len(shape) != 4:
        return None
    readings = [
        Geometry("map", (shape[2], shape[3])),
        Geometry("map_channels_last", (shape[1], shape[2])),
    ]
    if before is not None and before.layout == "map_channels_last":
        readings.reverse()
    return next((reading for reading in readings if _covers(reading.grid, image_size)), None)


def _covers(grid: Grid, image_size: Grid) -> bool:
    """Whether a grid lies on an image with the same stride both ways, but for rounding."""
    strides = [pixels / size for pixels, size in zip(image_size, grid, strict=True)]
    return min(strides) >= 1 and max(strides) < SAME_RESOLUTION * min(strides)


def read_tokens(shape: tuple[int, ...], grid: Grid) -> Geometry | None:
    """Read a shape (batch, tokens, chan) as the positions of a grid behind some prefix tokens.

    Example:
        >>> read_tokens((2, 17, 192), (4, 4)).num_prefix_tokens
        1
    """
    if len(shape) != 3:
        return None
    count = shape[1] - grid[0] * grid[1]
    return Geometry("tokens", grid, count) if 0 <= count < grid[0] * grid[1] else None
