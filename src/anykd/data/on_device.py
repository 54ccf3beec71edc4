"""Views that the device makes: when it does, and what it keeps for that."""

from typing import Literal, final

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from anykd.errors import DataError, RecipeError

from .drawn import Drawn
from .pixel_ops import SUPPORTED
from .reader import pixel_array
from .train_views import Part, TrainViews

__all__ = ["DeviceViews", "ViewsOn", "made_by_workers"]

ViewsOn = Literal["auto", "workers", "device"]
"""Who makes the views."""

_MOST_BYTES = 2 * 2**30
"""Pixels of a data set that the device holds."""


def made_by_workers(views: TrainViews, views_on: ViewsOn, device: torch.device) -> Part:
    """How much of the views the loader's processes make; the device does the rest.

    Args:
        views: Of what.
        views_on: What a person asked for. "auto" is the device if that is a GPU with 64-bit
            numbers, and can.
        device: Where the batches are to be.

    Raises:
        RecipeError: If the device is asked for, and there is a change of colours or shape that only
            Pillow can do, or the device has no 64-bit numbers.
    """
    unknown = sorted(views.op_names - SUPPORTED)
    if views_on == "device" and unknown:
        raise RecipeError(
            f"data.views_on is 'device', and augment.rand_augment may choose {unknown[0]}, which "
            "is not done on devices",
            "set data.views_on = 'workers', or leave it out",
        )
    if views_on == "device" and device.type == "mps":
        raise RecipeError(
            "data.views_on is 'device', and Apple's GPUs have no 64-bit numbers, which it needs",
            "set data.views_on = 'workers', or leave it out",
        )
    if unknown or views_on == "workers" or (views_on == "auto" and device.type != "cuda"):
        return "views"
    # Which pixel is nearest, where two are as near, follows from Pillow's way to count.
    if views.augment.interpolation == "nearest" or _pixels(views) is None:
        return "crops"
    return "choices"


@final
class DeviceViews:
    """Finishes views on a device.

    Args:
        views: Which.
        part: What is made of them before.
        device: Where they and what they are made from lie.
    """

    def __init__(self, views: TrainViews, part: Part, device: torch.device) -> None:
        self.device = device
        self._views = views
        self._part = part
        self._source: Tensor | None = None

    def __call__(
        self, drawn: Drawn
    ) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, "batch classes"] | None]:
        """Make images and labels of what is drawn. Nothing waits for the device."""
        if self._part == "choices" and self._source is None:
            # Not before the first batch: the loader's processes have no use for a copy.
            self._source = torch.tensor(_pixels(self._views), device=self.device)
        return self._views.finish(drawn.to(self.device), self._source)


def _pixels(views: TrainViews) -> UInt8[ndarray, "count height width 3"] | None:
    """The pixels of all images, where a device can hold them."""
    reader = views.reader
    try:
        # Before any is copied: images of one size are all as large as the first.
        if len(reader) * reader[0].pixels.nbytes > _MOST_BYTES:
            return None
    except DataError:
        return None
    return pixel_array(reader)
