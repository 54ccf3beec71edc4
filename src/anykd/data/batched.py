"""From drawn views to finished ones, a whole batch at a time, on whatever device it lies."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from .drawn import Drawn
from .pixel_ops import apply_ops
from .rendering import FILL

__all__ = ["crop_batch", "distributions", "finish"]

_FIXED_POINT = 2**22
"""Pillow's weights are whole multiples of 1 / this."""

Images = Float[Tensor, "batch 3 height width"]


def finish(
    drawn: Drawn,
    *,
    size: tuple[int, int],
    interpolation: str,
    source: UInt8[Tensor, "count in_height in_width 3"] | None = None,
) -> Images:
    """Do what is left to do.

    Nothing waits for the device, and nothing is drawn.

    Args:
        drawn: On the device.
        size: Height and width of the views in pixels.
        interpolation: How images are resized.
        source: Pixels of all images, on the device; needed where ``drawn`` has none of its own.

    Returns:
        RGB, nominally in [0, 1].
    """
    pixels = drawn.pixels
    if pixels is None:
        assert source is not None
        assert drawn.axes is not None
        assert drawn.flips is not None
        given = source[drawn.indices]
        pixels = crop_batch(given, drawn.axes, drawn.flips, size, interpolation=interpolation)
    for layer in range(max(map(len, drawn.ops), default=0)):
        ops = [chosen[layer] if layer < len(chosen) else None for chosen in drawn.ops]
        pixels = apply_ops(pixels, ops, fill=FILL, interpolation=interpolation)
    images = pixels.float().div_(255)
    if drawn.patches is not None:
        _erase_(images, drawn)
    return images if drawn.blends is None else _mixed(images, drawn)


def distributions(
    classes: Int[Tensor, " batch"],
    shares: Float[Tensor, "batch 2"] | None,
    *,
    num_classes: int,
    smoothing: float,
) -> Float[Tensor, "batch classes"]:
    """Turn class indices into distributions.

    Args:
        classes: Of each image.
        shares: What each keeps of its own label and takes of its neighbour's; None where nothing
            is mixed.
        num_classes: Width of the labels.
        smoothing: s in [0, 1): a label is s/C, plus 1 - s for its class.
    """
    rest = smoothing / num_classes
    labels = torch.full((len(classes), num_classes), rest, device=classes.device)
    labels.scatter_(1, classes[:, None], 1 - smoothing + rest)
    return labels if shares is None else _blended(labels, shares)


def crop_batch(
    images: UInt8[Tensor, "batch in_height in_width 3"],
    axes: Int[Tensor, "batch 2 6"],
    flips: Bool[Tensor, " batch"],
    size: tuple[int, int],
    *,
    interpolation: str,
) -> UInt8[Tensor, "batch 3 height width"]:
    """Crop, resize and flip images, each in its own way, by two products of matrices.

    A resized row is a weighted mean of the image's rows, and so are columns: all of an image is
    its matrix of weights for rows, the image, and that for columns. The weights are Pillow's, which
    widen the filter where images shrink; `grid_sample` cannot, and its bicubic filter is another.

    Args:
        images: Of one size.
        axes: How rows and columns of each are cropped and resized: the numbers of an `Axis`.
        flips: Whether left and right change places then.
        size: Height and width of the views in pixels.
        interpolation: ``bilinear``, ``bicubic`` or ``lanczos``.

    Returns:
        Pillow's pixels, resized along columns first, and rounded to bytes between.
    """
    count, height, width, _ = images.shape
    across = _weights(axes[:, 1], width, size[1], interpolation, flips)
    down = _weights(axes[:, 0], height, size[0], interpolation)
    lines = images.permute(0, 1, 3, 2).reshape(count, 3 * height, width).double()
    lines = _as_bytes_(lines @ across.mT).view(count, height, 3 * size[1])
    views = _as_bytes_(down @ lines).view(count, size[0], 3, size[1])
    return views.permute(0, 2, 1, 3).to(torch.uint8, memory_format=torch.contiguous_format)


def _weights(
    axis: Int[Tensor, "batch 6"],
    length: int,
    size: int,
    interpolation: str,
    flips: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch size length"]:
    """What each pixel of an image counts in each of its view, along one axis."""
    start, taken, resized, offset, first, end = axis[:, :, None].unbind(1)
    place = torch.arange(size, device=axis.device).expand(len(axis), size)
    if flips is not None:
        place = torch.where(flips[:, None], size - 1 - place, place)
    shown = (place >= first) & (place < end)
    place = (place + offset).clamp(min=0)
    pixel = torch.arange(length, device=axis.device)
    step = taken.double() / resized
    centre = start + (place + 0.5) * step
    distance = (pixel + 0.5 - centre[:, :, None]) / step[:, :, None].clamp(min=1)
    inside = (pixel >= start) & (pixel < start + taken)
    weights = _FILTERS[interpolation](distance) * inside[:, None]
    weights = weights / weights.sum(2, keepdim=True) * shown[:, :, None]
    return weights.mul_(_FIXED_POINT).round_().div_(_FIXED_POINT)


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    """The cubic filter with a = -1/2, as Pillow has it; torch's own has -3/4."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0)


_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}


def _as_bytes_(values: Tensor) -> Tensor:
    """Round and clip in place, halves upwards as Pillow does."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _erase_(images: Images, drawn: Drawn) -> None:
    """Replace rectangles, in place, by noise around ImageNet's mean colour, as `render` does."""
    patches, noise = drawn.patches, drawn.noise
    assert patches is not None
    assert noise is not None
    # Which rectangle a value of the noise is of, and which value of that it is.
    sizes = 3 * patches[:, 3] * patches[:, 4]
    of = torch.repeat_interleave(sizes, output_size=len(noise))
    image, top, left, height, width = patches[of].unbind(1)
    nth = torch.arange(len(noise), device=noise.device) - (sizes.cumsum(0) - sizes)[of]
    channel, row, column = nth // (height * width), nth // width % height, nth % width
    mean, std = (
        torch.tensor(values).to(noise.device, non_blocking=True)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    images[image, channel, top + row, left + column] = noise * std[channel] + mean[channel]


def _mixed(images: Images, drawn: Drawn) -> Images:
    """Mix neighbours: blend them, or show each in a box of the other."""
    blends, boxes = drawn.blends, drawn.boxes
    assert blends is not None
    assert boxes is not None
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    boxed = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(boxed, _partners(images), _blended(images, blends))


def _blended(values: Tensor, shares: Float[Tensor, "batch 2"]) -> Tensor:
    own, other = shares.view(-1, 2, *[1] * (values.dim() - 1)).unbind(1)
    return values * own + _partners(values) * other


def _partners(values: Tensor) -> Tensor:
    """The other of each two neighbours."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
