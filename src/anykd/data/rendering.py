"""From the choices of a view to its pixels, image by image: what loader processes do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from timm.data.auto_augment import NAME_TO_OP
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import str_to_pil_interp
from torch import Tensor

from .choices import Axis, Chosen, Crop, Mixing, Patch
from .pixel_ops import Op
from .reader import Sample

__all__ = ["FILL", "crop_and_flip", "render"]

FILL = (124, 116, 104)
"""Colour of the corners that a rotation or a shift lays bare: ImageNet's mean, as in timm."""

_BY_TORCH = ("bilinear", "bicubic")
"""What torch resizes bytes by as Pillow does, to a level of 255, and three times as fast."""


def render(
    samples: Sequence[Sample],
    chosen: Chosen,
    size: tuple[int, int],
    *,
    interpolation: str,
    exact: bool = False,
) -> Float[Tensor, "batch 3 height width"]:
    """Make views of a batch of images.

    Args:
        samples: The images.
        chosen: What to do to them.
        size: Height and width of the views in pixels.
        interpolation: How images are resized, and resampled where they are rotated and sheared.
        exact: As of `crop_and_flip`.

    Returns:
        RGB, nominally in [0, 1].
    """
    images = torch.empty(len(samples), 3, *size)
    for image, sample, crop in zip(images, samples, chosen.crops, strict=True):
        view = crop_and_flip(sample, crop, size, interpolation=interpolation, exact=exact)
        torch.div(_recoloured(view, crop.ops, interpolation), 255, out=image)
    for image, patch in zip(images, chosen.patches, strict=bool(chosen.patches)):
        if patch is not None:
            _erase_(image, patch)
    for first, mixing in enumerate(chosen.mixings):
        _mix_(images[2 * first : 2 * first + 2], mixing)
    return images


def crop_and_flip(
    sample: Sample,
    crop: Crop,
    size: tuple[int, int],
    *,
    interpolation: str,
    exact: bool = False,
) -> UInt8[Tensor, "3 height width"]:
    """Crop an image, resize it and flip it.

    Args:
        sample: The image.
        crop: What to do to it; its ops are not looked at.
        size: Height and width of the view in pixels.
        interpolation: How it is resized.
        exact: Whether to have Pillow's pixels to the bit. Else they may be off by one level of 255.
    """
    rows, columns = crop.rows, crop.columns
    resized = rows.resized, columns.resized
    if (rows.length, columns.length) == resized:
        shown = _box(sample, rows, columns)
    elif interpolation in _BY_TORCH and not exact:
        box = _box(sample, rows, columns)[None]
        (shown,) = F.interpolate(box, resized, mode=interpolation, antialias=True)
    else:
        image = sample.image.crop(_corners(rows, columns))
        # Columns first, and rounded to bytes: which comes first depends on Pillow's version.
        for height in (rows.length, rows.resized):
            image = image.resize((columns.resized, height), str_to_pil_interp(interpolation))
        shown = _pixels(image)
    view = _window(shown, rows, columns, size)
    return view.flip(2) if crop.flip else view


def _recoloured(
    view: UInt8[Tensor, "3 height width"], ops: tuple[Op, ...], interpolation: str
) -> UInt8[Tensor, "3 height width"]:
    """Put a view through timm's and Pillow's changes of colours and shape."""
    if not ops:
        return view
    image = Image.fromarray(view.permute(1, 2, 0).numpy())
    settings: dict[str, Any] = {"fillcolor": FILL, "resample": str_to_pil_interp(interpolation)}
    for name, given in ops:
        function = _posterize if name.startswith("Posterize") else NAME_TO_OP[name]
        image = function(image, *given, **settings)
    return _pixels(image)


def _box(sample: Sample, rows: Axis, columns: Axis) -> UInt8[Tensor, "3 height width"]:
    if isinstance(sample.content, Tensor):
        ends = rows.start + rows.length, columns.start + columns.length
        return sample.content[:, rows.start : ends[0], columns.start : ends[1]]
    return _pixels(sample.content.crop(_corners(rows, columns)))


def _corners(rows: Axis, columns: Axis) -> tuple[int, int, int, int]:
    left, top = columns.start, rows.start
    return left, top, left + columns.length, top + rows.length


def _pixels(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _window(
    shown: UInt8[Tensor, "3 h w"], rows: Axis, columns: Axis, size: tuple[int, int]
) -> UInt8[Tensor, "3 height width"]:
    """Cut the view out of the resized image; black where that has nothing."""
    part = shown[
        :,
        rows.first + rows.offset : rows.end + rows.offset,
        columns.first + columns.offset : columns.end + columns.offset,
    ]
    if part.shape[1:] == size:
        return part
    view = shown.new_zeros(3, *size)
    view[:, rows.first : rows.end, columns.first : columns.end] = part
    return view


def _erase_(image: Float[Tensor, "3 height width"], patch: Patch) -> None:
    """Replace a rectangle of an image, in place, by noise around ImageNet's mean colour.

    The published pipelines erase after normalisation with N(0, 1) per pixel and channel. In RGB
    that is N(mean, std) with ImageNet's statistics, so erased pixels may leave [0, 1]; clipping
    them would make another distribution of what the models see. All other pixels stay as they are.

    Source:
        Zhong et al., "Random Erasing Data Augmentation", arXiv:1708.04896, in timm's form: mode
        "pixel", one rectangle of 1/50 to 1/3 of the area.
    """
    height, width = patch.noise.shape[1:]
    rows, columns = slice(patch.top, patch.top + height), slice(patch.left, patch.left + width)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    image[:, rows, columns] = patch.noise * std + mean


def _mix_(pair: Float[Tensor, "2 3 height width"], mixing: Mixing) -> None:
    """Mix two images in place, each with the other."""
    if mixing.blend < 1:
        other = pair.flip(0).mul_(1 - mixing.blend)
        pair.mul_(mixing.blend).add_(other)
    top, bottom, left, right = mixing.box
    box = pair[:, :, top:bottom, left:right]
    box.copy_(box.flip(0))


def _posterize(image: Image.Image, bits: Any, **_: object) -> Image.Image:
    """Keep so many bits of each channel.

    At its largest magnitude RandAugment asks for none, which is a black image. Pillow 13 refuses
    that, and a run would break off after some hundred images.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)
