"""Images to make views of."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anykd.data.reader import Sample

__all__ = ["noise", "sample", "smooth"]


def noise(height: int, width: int) -> Image.Image:
    """Every pixel by itself: where a resize is off, it shows."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(1, 256, (height, width, 3), dtype=np.uint8))


def smooth(height: int, width: int) -> Image.Image:
    """As photographs are: neighbours are alike."""
    return noise(height // 8 + 2, width // 8 + 2).resize((width, height), Image.Resampling.BICUBIC)


def sample(image: Image.Image, *, as_pixels: bool = False) -> Sample:
    """What a reader gives: the image, or its pixels."""
    content: Image.Image | Tensor = image
    if as_pixels:
        content = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return Sample(content, 0, 0)
