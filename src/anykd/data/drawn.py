"""A batch of views that has been drawn and not yet made, or not to the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from .choices import Chosen
from .pixel_ops import Op

__all__ = ["Drawn", "drawn", "own_and_other"]


@final
@dataclass(frozen=True)
class Drawn:
    """What is left to do to make a batch of views, in tensors that a device can work from.

    It is done in the order of the attributes. Where one is None or empty, it is done already or
    was never to be.

    Attributes:
        classes: Class index of each image, 0 where there are no labels.
        indices: Position of each image in its reader.
        pixels: The images, or as much of the views as is made. None where the pixels of all images
            lie on the device: then ``indices`` name them.
        axes: Rows and columns of each image, as the numbers of an `Axis`.
        flips: Whether left and right of each change places, after the crop.
        ops: What each image goes through next.
        patches: Place of the image in the batch, top, left, height and width of each rectangle to
            erase.
        noise: What the rectangles are filled with, one after another; standard normal.
        blends: What each image keeps of its own pixels, and takes of its partner's.
        boxes: Top, bottom, left and right of where each shows its partner.
        shares: What each keeps of its own label, and takes of its partner's.
    """

    classes: Int[Tensor, " batch"]
    indices: Int[Tensor, " batch"]
    pixels: UInt8[Tensor, "batch 3 height width"] | None = None
    axes: Int[Tensor, "batch 2 6"] | None = None
    flips: Bool[Tensor, " batch"] | None = None
    ops: Sequence[Sequence[Op]] = ()
    patches: Int[Tensor, "patches 5"] | None = None
    noise: Float[Tensor, " values"] | None = None
    blends: Float[Tensor, "batch 2"] | None = None
    boxes: Int[Tensor, "batch 4"] | None = None
    shares: Float[Tensor, "batch 2"] | None = None

    def pin_memory(self, device: str | None = None) -> "Drawn":
        """Copy it to memory from which a GPU copies faster; torch's loader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "Drawn":
        """Copy it to a device; nothing waits for the copies."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Drawn":
        tensors = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def drawn(
    chosen: Chosen,
    classes: Sequence[int],
    indices: Sequence[int],
    pixels: UInt8[Tensor, "batch 3 height width"] | None,
) -> Drawn:
    """Write the choices of a batch as tensors.

    Args:
        chosen: What is done to the images.
        classes: Class index of each.
        indices: Position of each in its reader.
        pixels: The views as far as they are cropped and flipped; None where that is left to do.
    """
    each = chosen.crops
    there = [(place, patch) for place, patch in enumerate(chosen.patches) if patch is not None]
    places = [(place, patch.top, patch.left, *patch.noise.shape[1:]) for place, patch in there]
    boxes = [mixing.box for mixing in chosen.mixings for _ in range(2)]
    return Drawn(
        classes=torch.tensor(classes),
        indices=torch.tensor(indices),
        pixels=pixels,
        axes=torch.tensor([(crop.rows, crop.columns) for crop in each]) if pixels is None else None,
        flips=torch.tensor([crop.flip for crop in each]) if pixels is None else None,
        ops=[crop.ops for crop in each],
        patches=torch.tensor(places) if there else None,
        noise=torch.cat([patch.noise.flatten() for _, patch in there]) if there else None,
        blends=own_and_other([mixing.blend for mixing in chosen.mixings]),
        boxes=torch.tensor(boxes) if boxes else None,
        shares=own_and_other([mixing.share for mixing in chosen.mixings]),
    )


def own_and_other(shares: Sequence[float]) -> Float[Tensor, "batch 2"] | None:
    """What both of each two neighbours keep of their own, and take of the other.

    Args:
        shares: What the two keep; none where nothing is mixed.
    """
    if not shares:
        return None
    return torch.tensor([(share, 1 - share) for share in shares]).repeat_interleave(2, dim=0)
