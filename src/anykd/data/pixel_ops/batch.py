"""One operation for each image of a batch."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import UInt8
from torch import Tensor

from .colours import COLOUR_OPS
from .warps import MATRICES, READERS, fixed_point, warp

__all__ = ["SUPPORTED", "Op", "apply_ops"]

Op = tuple[str, tuple[float, ...]]
"""timm's name of an operation, and the arguments that its function takes after the image."""

SUPPORTED = frozenset(MATRICES) | frozenset(COLOUR_OPS)
"""timm's names of all its operations but Gaussian blurs: one draws its radius only while it blurs,
and Pillow blurs by boxes, in rounded steps of its own."""

# Bounds what a batch takes beside itself while it is warped: to 240 MB, as measured.
_PIXELS_AT_ONCE = 2**19

_Group = Callable[[Tensor, Tensor], Tensor]


def apply_ops(
    images: UInt8[Tensor, "batch 3 height width"],
    ops: Sequence[Op | None],
    *,
    fill: tuple[int, int, int],
    interpolation: str,
) -> UInt8[Tensor, "batch 3 height width"]:
    """Apply one operation to each image of a batch.

    No byte differs by more than 1 of 255 from what timm's function makes with Pillow of the same
    image and the same arguments; only where colours are interpolated does any differ. Images that
    share an operation go through it together, and all that are rotated, sheared or shifted do.
    The host reads nothing from the device.

    Args:
        images: RGB, on any device that has float64, in any memory layout.
        ops: For each image one of the `SUPPORTED` operations, or None to leave it as it is.
        fill: Colour of what comes from outside an image.
        interpolation: How images are rotated, sheared and shifted: ``nearest``, ``bilinear`` or
            ``bicubic``. Others will do where none is.

    Returns:
        New images; the given ones stay as they are.

    Raises:
        ValueError: If an operation is not supported, or an interpolation is needed and is none of
            the three.
    """
    groups: dict[_Group, list[tuple[float, ...]]] = {}
    warped = partial(warp, interpolation=interpolation)
    height, width = images.shape[2:]
    for position, op in zip(range(len(images)), ops, strict=True):
        if op is None:
            continue
        name, arguments = op
        if name in COLOUR_OPS:
            groups.setdefault(COLOUR_OPS[name], []).append((position, *arguments))
            continue
        if name not in MATRICES:
            raise ValueError(f"no such operation on pixels: {name}; use {sorted(SUPPORTED)}")
        if interpolation not in READERS:
            raise ValueError(f"{name} takes interpolation {list(READERS)}, got {interpolation!r}")
        matrix = MATRICES[name](*arguments, width=width, height=height)
        if interpolation == "nearest":
            matrix = fixed_point(matrix)
        groups.setdefault(warped, []).append((position, *matrix, *fill))
    result = images.clone(memory_format=torch.contiguous_format)
    if not groups:
        return result
    rows = [row for group in groups.values() for row in group]
    # All numbers cross to the device at once, in the precision that Pillow reckons with.
    longest = max(len(row) for row in rows)
    padded = [row + (0.0,) * (longest - len(row)) for row in rows]
    numbers = torch.tensor(padded, dtype=torch.float64).to(images.device, non_blocking=True)
    positions = numbers[:, 0].long()
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    start = 0
    for operate, group in groups.items():
        end = start + len(group)
        for first in range(start, end, at_once):
            part = slice(first, min(first + at_once, end))
            chosen = images.index_select(0, positions[part])
            result.index_copy_(0, positions[part], operate(chosen, numbers[part, 1:]))
        start = end
    return result
