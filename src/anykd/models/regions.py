"""PAT's region-aware attention: the student's stages, seen together from the teacher's side.

Source:
    Lin et al., "Perspective-Aware Teaching: Adapting Knowledge for Heterogeneous Distillation",
    ICCV 2025, arXiv:2501.08885.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn

__all__ = ["RegionAwareAttention"]

Shape = tuple[int, int, int]

_CELLS = 4
"""Cells per side of a region at most: what keeps the cost the same for images of any size."""


class RegionAwareAttention(nn.Module):
    """Blend the regions of all stages of one model into maps of another model's shapes.

    Each stage is cut into ``grid`` x ``grid`` regions, and each region becomes a token. The tokens
    of all stages attend to one another in a single head; then those of stage k are unfolded to the
    k-th target shape. A region holds at most 4x4 cells on either side: finer maps are averaged
    down to that, and the unfolded ones are interpolated up.

    Args:
        sources: (chan, height, width) of each stage that comes in.
        targets: (chan, height, width) of each map that goes out, as many as sources.
        grid: Regions per side of a stage; a smaller stage has one region for each position.
        width: Width of the tokens.
    """

    def __init__(
        self, sources: Sequence[Shape], targets: Sequence[Shape], *, grid: int, width: int
    ) -> None:
        super().__init__()
        regions = [(min(grid, height), min(grid, px)) for _, height, px in sources]
        self.tokens = [height * px for height, px in regions]
        pairs = list(zip(sources, targets, regions, strict=True))
        self.fold = nn.ModuleList(_Fold(source, own, width) for source, _, own in pairs)
        self.norm = nn.LayerNorm(width)
        self.positions = nn.Parameter(torch.empty(1, sum(self.tokens), width))
        self.qkv = nn.Linear(width, 3 * width)
        self.unfold = nn.ModuleList(_Unfold(width, own, target) for _, target, own in pairs)
        trunc_normal_(self.positions, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Where each region is, and in which stage."""
        return {"positions"}

    def forward(
        self, stages: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> list[Float[Tensor, "batch _ _ _"]]:
        """Bring the stages to the targets' shapes."""
        tokens = torch.cat(
            [fold(stage) for fold, stage in zip(self.fold, stages, strict=True)], dim=1
        )
        # Normed first: the stages of a model differ in scale by orders of magnitude.
        query, key, value = self.qkv(self.norm(tokens) + self.positions).chunk(3, dim=-1)
        blended = F.scaled_dot_product_attention(query, key, value)
        parts = blended.split(self.tokens, dim=1)
        return [unfold(part) for unfold, part in zip(self.unfold, parts, strict=True)]


class _Fold(nn.Module):
    """Map to tokens: one convolution whose kernel and stride are a region's cells."""

    def __init__(self, source: Shape, regions: tuple[int, int], width: int) -> None:
        super().__init__()
        chan, *grid = source
        cells = _cells(grid, regions)
        self.grid = _times(regions, cells)
        self.project = nn.Conv2d(chan, width, kernel_size=cells, stride=cells)

    def forward(
        self, stage: Float[Tensor, "batch chan height width"]
    ) -> Float[Tensor, "batch tokens embed"]:
        return self.project(_resample(stage, self.grid)).flatten(2).transpose(1, 2)


class _Unfold(nn.Module):
    """Tokens to a map: each token gives all cells of its region."""

    def __init__(self, width: int, regions: tuple[int, int], target: Shape) -> None:
        super().__init__()
        self.chan, *grid = target
        self.regions, self.cells = regions, _cells(grid, regions)
        self.target = (target[1], target[2])
        self.project = nn.Linear(width, self.chan * math.prod(self.cells))

    def forward(
        self, tokens: Float[Tensor, "batch tokens embed"]
    ) -> Float[Tensor, "batch chan height width"]:
        cells = self.project(tokens).unflatten(2, (self.chan, *self.cells))
        cells = cells.unflatten(1, self.regions)  # (batch, rows, columns, chan, own rows, columns)
        stage = cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return _resample(stage, self.target)


def _cells(grid: Sequence[int], regions: tuple[int, int]) -> tuple[int, int]:
    """Cells per side of a region, so that a grid up to 4 times the regions is kept in full."""
    height, width = (
        min(_CELLS, math.ceil(side / count)) for side, count in zip(grid, regions, strict=True)
    )
    return height, width


def _times(regions: tuple[int, int], cells: tuple[int, int]) -> tuple[int, int]:
    return regions[0] * cells[0], regions[1] * cells[1]


def _resample(
    stage: Float[Tensor, "batch chan height width"], grid: tuple[int, int]
) -> Float[Tensor, "batch chan new_height new_width"]:
    """Average down to a grid, or interpolate where a side grows."""
    height, width = stage.shape[-2:]
    if height >= grid[0] and width >= grid[1]:
        return stage if (height, width) == grid else F.adaptive_avg_pool2d(stage, grid)
    return F.interpolate(stage, grid, mode="bilinear", align_corners=False)
