"""From an image to its view in evaluation."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor
from torchvision import transforms

from .augment import AugmentConfig

__all__ = ["View", "eval_view", "height_width", "in_unit_range"]

View = Callable[[Image.Image], UInt8[Tensor, "3 height width"]]


def eval_view(augment: AugmentConfig, image_size: int | tuple[int, int]) -> View:
    """Build what is done to one image in evaluation: resize the short side, crop the centre.

    Args:
        augment: Settings, of which ``crop_pct`` and ``interpolation`` count.
        image_size: Height and width of the views in pixels, or one number for both.
    """
    whole = transforms_imagenet_eval(
        height_width(image_size),
        crop_pct=augment.crop_pct,
        interpolation=augment.interpolation,
        normalize=False,
    )
    return transforms.Compose(whole.transforms)


def in_unit_range(views: Sequence[Tensor]) -> Float[Tensor, "batch 3 height width"]:
    """Stack 8-bit views to one float tensor in [0, 1]."""
    return torch.stack(list(views)).float().div_(255)


def height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Both of one number."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size
