"""Bring a feature map to another geometry, so that two models can meet."""

from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["MapAligner"]

Shape = tuple[int, int, int]


class MapAligner(nn.Module):
    """Learnt map from (chan, height, width) to another such shape.

    One resolution: a 1x1 convolution. A grid that shrinks by a whole factor: a convolution with
    kernel and stride of that factor; one that grows by it: a 1x1 convolution and a pixel shuffle.
    Any other grid is average-pooled (or interpolated, where it grows) to the new one first.

    Args:
        source: Shape of the maps that come in.
        target: Shape of the maps that go out.

    Attributes:
        description: Which of these it is, in a few words.
    """

    def __init__(self, source: Shape, target: Shape) -> None:
        super().__init__()
        (chan_in, *grid_in), (chan_out, *grid_out) = source, target
        self.grid = cast("tuple[int, int]", tuple(grid_out))
        shrink = _whole_factor(grid_in, grid_out)
        grow = _whole_factor(grid_out, grid_in)
        self.project: nn.Module
        self.resample = shrink is None and grow is None
        self.description = "1x1 convolution"
        if shrink is not None:
            self.project = nn.Conv2d(chan_in, chan_out, kernel_size=shrink, stride=shrink)
            if shrink > 1:
                self.description = f"{shrink}x{shrink} convolution of stride {shrink}"
        elif grow is not None:
            widened = nn.Conv2d(chan_in, chan_out * grow * grow, kernel_size=1)
            self.project = nn.Sequential(widened, nn.PixelShuffle(grow))
            self.description += f" and pixel shuffle by {grow}"
        else:
            self.project = nn.Conv2d(chan_in, chan_out, kernel_size=1)
            self.description = f"resampled to {grid_out[0]}x{grid_out[1]}, 1x1 convolution"

    def forward(
        self, stage: Float[Tensor, "batch chan height width"]
    ) -> Float[Tensor, "batch new_chan new_height new_width"]:
        """Bring a map to the target's geometry."""
        if self.resample:
            if stage.shape[-2] >= self.grid[0] and stage.shape[-1] >= self.grid[1]:
                stage = F.adaptive_avg_pool2d(stage, self.grid)
            else:
                stage = F.interpolate(stage, self.grid, mode="bilinear", align_corners=False)
        return self.project(stage)


def _whole_factor(larger: list[int], smaller: list[int]) -> int | None:
    """The whole number by which both sides shrink alike, or None."""
    factor = larger[0] // smaller[0]
    exact = all(a == factor * b for a, b in zip(larger, smaller, strict=True))
    return factor if exact and factor >= 1 else None
