"""What a model is made of, read off its modules."""

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import nn

__all__ = ["BranchDesign", "Kind", "branch_design_of", "kind_of", "pick_taps"]

Kind = Literal["conv", "attention", "mlp", "hybrid"]
BranchDesign = Literal["map", "token"]


def pick_taps(num_levels: int, *, columnar: bool) -> tuple[int, int, int, int]:
    """Choose the four levels that end the stages.

    A hierarchical model gives its last four. A columnar one of depth L gives the blocks (counted
    from 0) 1, 3, L-3 and L-1, the 2-2-(L-6)-2 split that Swin-T has; below depth 7 that would
    overlap, and the four quarters of the depth are taken.

    Args:
        num_levels: Levels that the model offers, at least 4.
        columnar: Whether they all have one resolution.

    Example:
        >>> pick_taps(5, columnar=False), pick_taps(12, columnar=True), pick_taps(4, columnar=True)
        ((1, 2, 3, 4), (1, 3, 9, 11), (0, 1, 2, 3))
    """
    if not columnar:
        return (num_levels - 4, num_levels - 3, num_levels - 2, num_levels - 1)
    if num_levels >= 7:
        return (1, 3, num_levels - 3, num_levels - 1)
    first, second, third, last = (round(k * num_levels / 4) - 1 for k in (1, 2, 3, 4))
    return (first, second, third, last)


def kind_of(
    model: nn.Module, stage_modules: Sequence[str], *, columnar: bool, attention: bool
) -> Kind:
    """Say what mixes positions in the stages: convolution, attention, both, or neither (MLP).

    Args:
        model: The classifier.
        stage_modules: Paths of the modules that end the stages, where they are known.
        columnar: Whether all stages have one resolution.
        attention: Whether the model was seen to multiply features with features.
    """
    parts = list(_stage_parts(model, stage_modules))
    if attention:
        return "hybrid" if any(map(_mixes_neighbours, parts)) else "attention"
    # A pyramid without attention shrinks its maps by convolution or pooling: local all the same.
    return "conv" if not columnar or any(map(_mixes_neighbours, parts)) else "mlp"


def branch_design_of(kind: Kind, *, columnar: bool) -> BranchDesign:
    """Say which of OFA's branches suits the stages: convolutions on maps, or blocks on tokens.

    Tokens for columnar models and for pyramids of pure attention (Swin), maps for all others.

    Args:
        kind: What mixes positions.
        columnar: Whether all stages have one resolution.
    """
    return "token" if columnar or kind == "attention" else "map"


def _stage_parts(model: nn.Module, stage_modules: Sequence[str]) -> Iterator[nn.Module]:
    """Every module inside the containers of the stages; the stem and the head stand outside."""
    if not stage_modules:
        yield from model.modules()
    for root in dict.fromkeys(path.split(".")[0] for path in stage_modules):
        yield from model.get_submodule(root).modules()


def _mixes_neighbours(part: nn.Module) -> bool:
    """Whether a module is a convolution over overlapping windows, not a patch embedding."""
    if not isinstance(part, nn.Conv2d):
        return False
    return any(k > s for k, s in zip(part.kernel_size, part.stride, strict=True))
