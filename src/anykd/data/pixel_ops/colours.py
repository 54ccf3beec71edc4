"""Operations on the colours of images: all give the bytes that Pillow gives."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["COLOUR_OPS"]

Bytes = UInt8[Tensor, "count 3 height width"]
Arguments = Float[Tensor, "count arguments"]  # float64, a row for each image


def _invert(images: Bytes, _: Arguments) -> Bytes:
    return 255 - images


def _posterize(images: Bytes, arguments: Arguments) -> Bytes:
    """Keep so many bits; none of them is a black image."""
    dropped = 8 - _of_image(arguments).clamp(0, 8).int()
    return images & (255 << dropped).to(torch.uint8)


def _solarize(images: Bytes, arguments: Arguments) -> Bytes:
    return torch.where(images < _of_image(arguments).short(), images, 255 - images)


def _solarize_add(images: Bytes, arguments: Arguments) -> Bytes:
    added = torch.minimum(_of_image(arguments).to(torch.uint8), 255 - images)
    return torch.where(images < 128, images + added, images)


def _auto_contrast(images: Bytes, _: Arguments) -> Bytes:
    """Stretch each channel to 0..255; one of a single level stays."""
    low, high = (of(images, dim=(2, 3), keepdim=True).double() for of in (torch.amin, torch.amax))
    # Not `255 / x`, which torch takes for 255 times the rounded 1 / x.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = _to_bytes(images * scale + -low * scale)
    return torch.where(high > low, stretched, images)


def _equalize(images: Bytes, _: Arguments) -> Bytes:
    """Spread the levels of each channel evenly; one of too few pixels or levels stays."""
    levels = images.flatten(0, 1).flatten(1).long()
    rows = torch.arange(len(levels), device=images.device).unsqueeze(1)
    bins = (levels + 256 * rows).flatten()
    counts = torch.zeros(256 * len(levels), dtype=torch.int64, device=images.device)
    counts = counts.scatter_add_(0, bins, torch.ones_like(bins)).view(-1, 256)
    brightest = counts.gather(1, levels.amax(dim=1, keepdim=True))
    step = (levels.shape[1] - brightest) // 255
    below = counts.cumsum(dim=1) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(1, levels), levels).to(torch.uint8).view_as(images)


def _brightness(images: Bytes, arguments: Arguments) -> Bytes:
    return _to_bytes(images * _of_image(arguments).float())


def _color(images: Bytes, arguments: Arguments) -> Bytes:
    return _blend(_grey(images), images, arguments)


def _desaturate(images: Bytes, arguments: Arguments) -> Bytes:
    return _color(images, (1 - arguments).clamp(0, 1))


def _contrast(images: Bytes, arguments: Arguments) -> Bytes:
    """Blend with the mean grey, rounded."""
    pixels = images.shape[2] * images.shape[3]
    total = _grey(images).sum(dim=(2, 3), keepdim=True)
    return _blend((2 * total + pixels) // (2 * pixels), images, arguments)


def _sharpness(images: Bytes, arguments: Arguments) -> Bytes:
    """Blend with a mean of 3x3 pixels whose centre counts five times; the border stays."""
    floats = images.float()
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    nine = F.avg_pool2d(floats, 3, stride=1, padding=1, divisor_override=1)
    smooth = floats.clone()
    smooth[inner] = ((nine[inner] + 4 * floats[inner]) / 13).round_()
    return _blend(smooth, floats, arguments)


def _grey(images: Bytes) -> Tensor:
    """Luminance as Pillow rounds it."""
    red, green, blue = images.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(ground: Tensor, images: Tensor, arguments: Arguments) -> Bytes:
    """Go from ``ground`` towards the images, or beyond them, in float32 as Pillow does."""
    ground = ground.float()
    return _to_bytes(ground + _of_image(arguments).float() * (images - ground))


def _of_image(arguments: Arguments) -> Float[Tensor, "count 1 1 1"]:
    """The first argument of each image."""
    return arguments[:, 0, None, None, None]


def _to_bytes(values: Tensor) -> Bytes:
    """Clip, and cut off what is behind the point."""
    return values.clamp_(0, 255).to(torch.uint8)


COLOUR_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Brightness": _brightness,
    "BrightnessIncreasing": _brightness,
    "Color": _color,
    "ColorIncreasing": _color,
    "Contrast": _contrast,
    "ContrastIncreasing": _contrast,
    "Desaturate": _desaturate,
    "Equalize": _equalize,
    "Invert": _invert,
    "Posterize": _posterize,
    "PosterizeIncreasing": _posterize,
    "PosterizeOriginal": _posterize,
    "Sharpness": _sharpness,
    "SharpnessIncreasing": _sharpness,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "SolarizeIncreasing": _solarize,
}
"""What makes new images of old ones and their arguments, by timm's name."""
