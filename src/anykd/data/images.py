"""Decoding: from a file, or its bytes, to an upright image of 8-bit RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  # it adds torch.ops.image
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from anykd.errors import DataError, first_line

__all__ = ["EXTENSIONS", "MAX_PIXELS", "decode_pixels", "read_pixels", "read_rgb"]

MAX_PIXELS = 89_478_485
"""Pixels of an image from which on Pillow warns: a quarter of a gigabyte as RGB."""

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
"""What names of image files end in, in small letters."""

_FORMATS = frozenset(
    ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "AVIF", "JPEG2000", "TIFF", "GIF", "PPM")
)
"""What Pillow may find in a file, whatever its name: others, such as EPS, start programs."""

_RGB = 3  # torchvision's number for it
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0
_OVERSHOOT = 0.05
"""Share of the range that floating-point pixels may leave it by, as resizing makes them do."""


Decoded = Image.Image | UInt8[Tensor, "3 height width"]
"""What a decoder gives: an image of Pillow's or, where it is faster, its pixels."""


def read_rgb(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image the right way up, as 8-bit RGB.

    - Of 16 bits a channel the upper 8 stay, of 12 the upper 8 as well.
    - Floating-point pixels are shares of white from 0 to 1, or where one is above 1, levels from 0
      to 255. Integers of 32 bits are levels from 0 to 255.
    - What is transparent is laid on white, the paper that most such pictures are drawn for.
    - EXIF's orientation is applied; of an animation or a file of many pages the first is taken.

    Args:
        path: Its file.
        max_pixels: An image whose header announces more is not decoded. Pillow's own limit is
            raised to it, since cutting a view out of a large image meets it too.

    Raises:
        DataError: If that fails for any reason.
    """
    with _opened(path, str(path), max_pixels) as file:
        return _as_rgb(ImageOps.exif_transpose(file), file)


def read_pixels(path: Path, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Read an image as `read_rgb` does: the same pixels, in the form that comes fastest.

    Args:
        path: Its file.
        max_pixels: As in `read_rgb`.

    Raises:
        DataError: If that fails for any reason.
    """
    return _decode(path, str(path), max_pixels)


def decode_pixels(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Read an image out of the bytes of a file, as `read_pixels` does.

    Args:
        content: All of the file.
        name: What errors call it.
        max_pixels: As in `read_rgb`.

    Raises:
        DataError: If that fails for any reason.
    """
    return _decode(io.BytesIO(content), name, max_pixels)


def _decode(source: Path | io.BytesIO, name: str, max_pixels: int) -> Decoded:
    with _opened(source, name, max_pixels) as file:
        pixels = _decode_jpeg(file)
        return _as_rgb(ImageOps.exif_transpose(file), file) if pixels is None else pixels


@contextmanager
def _opened(source: Path | io.BytesIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Read the header of an image and look whether to go on; say in words what fails then too."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        with warnings.catch_warnings():
            # Said in our own words below, and no warning would come out of a worker process.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(source)
        with file:
            _require_harmless(file, max_pixels)
            yield file
    except MemoryError:
        raise
    except Exception as error:  # for bad files decoders raise almost anything
        reason = first_line(error)
        if isinstance(error, Image.DecompressionBombError):
            reason += f" (data.max_pixels = {max_pixels})"
        if isinstance(error, UnidentifiedImageError):  # it tells where bytes lie in memory
            reason = "it is of no format that is read here"
        raise DataError(
            f"{name} cannot be read as an image: {reason}", "mend or remove the file"
        ) from None


def _decode_jpeg(file: Image.Image) -> UInt8[Tensor, "3 height width"] | None:
    """Decode a JPEG by torchvision: the pixels that Pillow finds, there sooner.

    Both hand the file to libjpeg-turbo. Pillow, which has read the header, goes on where the file
    is no plain, upright RGB, and where torchvision fails: then it says why.

    Returns:
        Pixels whose channels lie side by side in memory; None where Pillow is to go on.
    """
    if (file.format, file.mode) != ("JPEG", "RGB"):
        return None
    if file.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    assert isinstance(file, ImageFile.ImageFile)
    assert file.fp is not None
    file.fp.seek(0)
    content = torch.frombuffer(bytearray(file.fp.read()), dtype=torch.uint8)
    try:
        # torchvision.io.decode_jpeg does this and warns that a later version will not have it.
        pixels = torch.ops.image.decode_jpeg(content, _RGB, False)
    except (AttributeError, RuntimeError):
        return None
    return pixels if pixels.shape == (3, file.height, file.width) else None


def _require_harmless(file: Image.Image, max_pixels: int) -> None:
    """Refuse, by its header, what would start a program or fill the memory."""
    if file.format not in _FORMATS:
        raise ValueError(f"{file.format} is no format of images that is read here")
    if file.width * file.height > max_pixels:
        raise ValueError(
            f"it has {file.width} x {file.height} pixels, more than data.max_pixels = {max_pixels}"
        )


def _as_rgb(image: Image.Image, file: Image.Image) -> Image.Image:
    """Turn an upright image into RGB.

    Args:
        image: Its pixels.
        file: What they were read from, with the format and its tags.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _as_grey(image, file)
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # The transparent colour of a 16-bit PNG, whose pixels Pillow has cut to 8 bits.
        image.info["transparency"] = tuple(level >> 8 for level in key)
    if image.mode.lower().endswith("a") or key is not None:  # LA, PA, RGBA, or multiplied
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _as_grey(image: Image.Image, file: Image.Image) -> Image.Image:
    """Bring grey of more than 8 bits to 8; Pillow would clip it at 255, which is mostly white."""
    levels = np.asarray(image)
    tags: Any = getattr(file, "tag_v2", {})
    if image.mode == "F":
        levels = _from_floats(levels)
    elif image.mode != "I" or file.format != "TIFF":  # PNG and PGM of 16 bits may come as "I"
        levels = (levels >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns 8 bits alone
            levels = 255 - levels
    elif levels.min() < 0 or levels.max() > 255:
        raise ValueError(
            f"its pixels of 32 or signed bits reach from {levels.min()} to {levels.max()}, and "
            "nothing says which of them is white: known are 0 to 255"
        )
    grey = Image.fromarray(levels.astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        hidden = np.asarray(image) == key
        grey.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    return grey


def _from_floats(levels: np.ndarray) -> np.ndarray:
    if not np.isfinite(levels).all():
        raise ValueError("some of its pixels are no finite numbers")
    white = 1.0 if levels.max() <= 1 + _OVERSHOOT else 255.0
    if levels.min() < -_OVERSHOOT * white or levels.max() > (1 + _OVERSHOOT) * white:
        raise ValueError(
            f"its pixels reach from {levels.min():g} to {levels.max():g}: known are 0 to 1 and 0 "
            "to 255"
        )
    return np.rint(levels.clip(0, white) * (255 / white))
