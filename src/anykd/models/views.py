"""What each model sees of one batch of images: its own size, interpolation, mean and deviation."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anykd.types import Stored

__all__ = ["View", "Views"]

Images = Float[Tensor, "batch 3 height width_px"]

_MODES = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}


@dataclass(frozen=True)
class View:
    """How a model wants its images.

    Attributes:
        image_size: (height, width) in pixels.
        interpolation: How images of another size are resized: nearest, bilinear or bicubic; torch
            has no other, so every other name is taken for bicubic.
        mean: Subtracted from each of R, G and B, in [0, 1].
        std: What R, G and B are divided by after that.
    """

    image_size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def resize(self, images: Images) -> Float[Tensor, "batch 3 own_height own_width"]:
        """Resize images in [0, 1], with antialiasing where they shrink; no-op at their own size."""
        if tuple(images.shape[-2:]) == self.image_size:
            return images
        mode = _MODES.get(self.interpolation, "bicubic")
        if mode == "nearest-exact":
            return F.interpolate(images, size=self.image_size, mode=mode)
        return F.interpolate(
            images, size=self.image_size, mode=mode, antialias=True, align_corners=False
        )


class Views:
    """One batch of images, from which several models take their views.

    Models with equal views share one tensor, and models that differ only in mean and deviation
    share the resized images, so nothing is computed twice.

    Args:
        images: RGB in [0, 1], of any size.
        stored: What teachers are known to say of them, by slot; see `anykd.types.Batch`.
    """

    def __init__(self, images: Images, stored: tuple[Stored | None, ...] = ()) -> None:
        self.images = images
        self.stored = stored
        self._resized: dict[tuple[tuple[int, int], str], Tensor] = {}
        self._normalised: dict[View, Tensor] = {}

    def of(
        self, view: View, mean: Tensor, std: Tensor
    ) -> Float[Tensor, "batch 3 own_height own_width"]:
        """The images as a model sees them.

        Args:
            view: The model's view.
            mean: ``view.mean`` as (1, 3, 1, 1), on the images' device.
            std: ``view.std`` likewise.
        """
        if view not in self._normalised:
            key = view.image_size, view.interpolation
            if key not in self._resized:
                self._resized[key] = view.resize(self.images)
            self._normalised[view] = (self._resized[key] - mean) / std
        return self._normalised[view]
