"""What a view is: choices, drawn from the global generators as timm and torchvision draw them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from torch import Tensor
from torchvision import transforms

from .augment import AugmentConfig
from .pixel_ops import Op

__all__ = ["Axis", "Chooser", "Chosen", "Crop", "Mixing", "Patch"]

_RATIO = (3 / 4, 4 / 3)
"""Width to height of a random resized crop, as timm has it."""


class Axis(NamedTuple):
    """How one axis of a view comes of the same axis of its image; all in pixels.

    ``length`` pixels from ``start`` on are resized to ``resized``. Pixel p of the view shows pixel
    p + ``offset`` of these, for p from ``first`` to ``end`` - 1; the others are black.
    """

    start: int
    length: int
    resized: int
    offset: int
    first: int
    end: int


@dataclass(frozen=True)
class Crop:
    """What is done to one image, up to bytes.

    Attributes:
        rows: How its rows are cropped and resized.
        columns: How its columns are, before the flip.
        flip: Whether left and right change places.
        ops: What is done then, in this order.
    """

    rows: Axis
    columns: Axis
    flip: bool
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Patch:
    """A rectangle of a view that noise replaces.

    Attributes:
        top: Of its first row.
        left: Of its first column.
        noise: Standard normal; also tells the size.
    """

    top: int
    left: int
    noise: Float[Tensor, "3 height width"]


class Mixing(NamedTuple):
    """How two images are mixed, each with the other.

    ``blend`` is what each keeps of its own pixels, and ``share`` of its own label. In ``box``, as
    (top, bottom, left, right), each shows the other alone; an empty one changes nothing.
    """

    blend: float
    share: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Chosen:
    """What is done to the images of a batch.

    Attributes:
        crops: One for each image, in the order of the batch.
        patches: Likewise; none at all where nothing is ever erased.
        mixings: One for each two neighbours; none at all where nothing is mixed.
    """

    crops: Sequence[Crop]
    patches: Sequence[Patch | None]
    mixings: Sequence[Mixing]


@final
class Chooser:
    """Draws what is done to images in training.

    All draws come from the global generators, by timm's and torchvision's own functions and in
    the order of timm's `create_transform`. That is not called because it leaves out colour jitter
    in silence beside RandAugment, and knows no pad-and-crop.

    Args:
        augment: Settings, resolved or not.
        size: Height and width of the views in pixels.

    Attributes:
        op_names: Names of all ops that may be chosen.
        draws_from_numpy: Whether crops, beside mixing, draw from NumPy's generator.
        mixes: Whether images are mixed in pairs.
        erases: Whether rectangles are erased.
    """

    def __init__(self, augment: AugmentConfig, size: tuple[int, int]) -> None:
        self._augment = augment = augment.resolved()
        self._size = size
        self._policy = _recorded(augment.rand_augment) if augment.rand_augment else None
        self.draws_from_numpy = self._policy is not None
        self._jitter: Any = None
        if augment.color_jitter:
            self._jitter = transforms.ColorJitter(*[augment.color_jitter] * 3)
        self._erasing = RandomErasing(augment.erasing or 0.0, mode="pixel", device="cpu")
        self._mixup: Any = None
        if augment.mixes:
            self._mixup = Mixup(
                mixup_alpha=augment.mixup or 0.0, cutmix_alpha=augment.cutmix or 0.0
            )
        self.mixes = augment.mixes
        self.erases = bool(augment.erasing)
        names = {op.name for op in self._policy.ops} if self._policy else set()
        self.op_names = frozenset(names | (set(_JITTERED) if self._jitter else set()))

    def crop(self, content: Image.Image | UInt8[Tensor, "3 height width"]) -> Crop:
        """Draw what is done to an image up to bytes.

        Args:
            content: Of which only the size counts.
        """
        rows, columns = self._axes(content)
        flip = self._augment.flip
        flipped = bool(flip) and bool(torch.rand(1) < flip)
        ops: list[Op] = [] if self._policy is None else self._policy([])
        if self._jitter is not None:
            ops += _jittered(self._jitter)
        return Crop(rows, columns, flipped, tuple(ops))

    def patch(self) -> Patch | None:
        """Draw the rectangle to erase; None where nothing is."""
        canvas = _Canvas((3, *self._size))
        self._erasing(canvas)
        return canvas.patch

    def mixing(self) -> Mixing:
        """Draw how two images are mixed."""
        share, cut = self._mixup._params_per_batch()
        if share == 1 or not cut:
            return Mixing(share, share, (0, 0, 0, 0))
        box, share = cutmix_bbox_and_lam((3, *self._size), share)
        top, bottom, left, right = (int(edge) for edge in box)
        return Mixing(1.0, float(share), (top, bottom, left, right))

    def _axes(self, content: Image.Image | Tensor) -> tuple[Axis, Axis]:
        augment, size = self._augment, self._size
        if augment.crop_scale != (1, 1):
            top, left, height, width = RandomResizedCropAndInterpolation.get_params(
                content, augment.crop_scale, _RATIO
            )
            return _resized(top, height, size[0]), _resized(left, width, size[1])
        crop_pct = 1.0 if augment.crop_padding else augment.crop_pct
        image_size = _size_of(content)
        resized = _short_side(image_size, size, crop_pct)
        axes = [_centred(*each) for each in zip(image_size, resized, size, strict=True)]
        if augment.crop_padding:
            padding = augment.crop_padding
            padded = torch.empty(3, size[0] + 2 * padding, size[1] + 2 * padding, device="meta")
            shifts = transforms.RandomCrop.get_params(padded, size)[:2]
            axes = [
                _shifted(axis, shift - padding, end)
                for axis, shift, end in zip(axes, shifts, size, strict=True)
            ]
        return axes[0], axes[1]


_JITTERED = ("Brightness", "Contrast", "Color")
"""timm's names of what torchvision's colour jitter does, in the order of its numbers."""


def _recorded(notation: str) -> Any:
    """A policy of timm's that takes a list, and returns it with the ops behind it that it chose."""
    policy = rand_augment_transform(notation, {"img_mean": (0, 0, 0)})
    for op in policy.ops:
        op.aug_fn = partial(_noted, op.name)
    return policy


def _noted(name: str, ops: Any, *given: float, **_: object) -> Any:
    # No list of ops in the signature: who checks types as the tests do draws the item to look at,
    # and from the generator from which timm draws next.
    return [*ops, (name, given)]


def _jittered(jitter: Any) -> list[Op]:
    order, *factors = jitter.get_params(
        jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    )
    # The fourth is the hue, which is left alone.
    return [(_JITTERED[n], (factors[n],)) for n in order.tolist() if n < len(_JITTERED)]


@final
class _Canvas:
    """What timm's eraser takes for an image: it remembers where the noise would have gone."""

    dtype = torch.float32

    def __init__(self, size: tuple[int, int, int]) -> None:
        self._size = size
        self.patch: Patch | None = None

    def size(self) -> tuple[int, int, int]:
        return self._size

    def __setitem__(self, place: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, rows, columns = place
        self.patch = Patch(rows.start, columns.start, noise)


def _size_of(content: Image.Image | Tensor) -> tuple[int, int]:
    if isinstance(content, Tensor):
        return content.shape[-2], content.shape[-1]
    return content.height, content.width


def _short_side(
    image_size: tuple[int, int], size: tuple[int, int], crop_pct: float
) -> tuple[int, int]:
    """Height and width to which an image is resized before its centre is cropped, as by timm."""
    height, width = (math.floor(side / crop_pct) for side in size)
    if height != width:
        meta = torch.empty(3, *image_size, device="meta")
        height, width = ResizeKeepRatio.get_params(meta, (height, width), 0.0)
        return height, width
    short, long = min(image_size), max(image_size)
    longer = int(height * long / short)
    return (longer, height) if image_size[0] > image_size[1] else (height, longer)


def _resized(start: int, length: int, size: int) -> Axis:
    return Axis(start, length, size, 0, 0, size)


def _centred(length: int, resized: int, size: int) -> Axis:
    """The centre of a whole axis; where that is too short, with black on both sides."""
    offset = round((resized - size) / 2) if resized >= size else -((size - resized) // 2)
    return Axis(0, length, resized, offset, max(0, -offset), min(size, resized - offset))


def _shifted(axis: Axis, shift: int, size: int) -> Axis:
    """Move the window of a view; what comes in from outside of it is black."""
    first, end = max(0, axis.first - shift), min(size, axis.end - shift)
    return axis._replace(offset=axis.offset + shift, first=first, end=end)
