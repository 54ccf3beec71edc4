"""From an image to one of its views. Each function draws from the global generators."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import (
    MaybePILToTensor,
    RandomResizedCropAndInterpolation,
    str_to_pil_interp,
)
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor
from torchvision import transforms

from .augment import AugmentConfig

__all__ = ["View", "erase_", "eval_view", "height_width", "train_view"]

View = Callable[[Image.Image], UInt8[Tensor, "3 height width"]]


def train_view(augment: AugmentConfig, image_size: int | tuple[int, int]) -> View:
    """Build what is done to one image in training, up to bytes: crop, flip, colours.

    timm's `create_transform` puts the same parts in the same order; it is not called because it
    leaves out colour jitter in silence beside RandAugment, and knows no pad-and-crop.

    Args:
        augment: Settings, resolved or not.
        image_size: Height and width of the views in pixels, or one number for both.
    """
    augment = augment.resolved()
    size = height_width(image_size)
    parts: list[Callable] = []
    if augment.crop_padding:
        parts += _centre_crop(size, 1.0, augment.interpolation)
        parts += [transforms.RandomCrop(size, padding=augment.crop_padding)]
    elif augment.crop_scale == (1, 1):
        parts += _centre_crop(size, augment.crop_pct, augment.interpolation)
    else:
        parts += [
            RandomResizedCropAndInterpolation(
                size, scale=augment.crop_scale, interpolation=augment.interpolation
            )
        ]
    if augment.flip:
        parts += [transforms.RandomHorizontalFlip(augment.flip)]
    if augment.rand_augment:
        # As timm's factory calls it: new corners get ImageNet's mean colour.
        settings = {
            "img_mean": tuple(min(255, round(255 * mean)) for mean in IMAGENET_DEFAULT_MEAN),
            "interpolation": str_to_pil_interp(augment.interpolation),
        }
        policy = rand_augment_transform(augment.rand_augment, settings)
        for op in policy.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
        parts += [policy]
    if augment.color_jitter:
        parts += [transforms.ColorJitter(*[augment.color_jitter] * 3)]
    return transforms.Compose([*parts, MaybePILToTensor()])


def eval_view(augment: AugmentConfig, image_size: int | tuple[int, int]) -> View:
    """Build what is done to one image in evaluation: resize the short side, crop the centre.

    Args:
        augment: Settings, of which ``crop_pct`` and ``interpolation`` count.
        image_size: Height and width of the views in pixels, or one number for both.
    """
    size = height_width(image_size)
    return transforms.Compose(
        [*_centre_crop(size, augment.crop_pct, augment.interpolation), MaybePILToTensor()]
    )


def erase_(image: Float[Tensor, "3 height width"], probability: float) -> None:
    """Replace a rectangle of an image, in place, by noise around ImageNet's mean colour.

    The published pipelines erase after normalisation with N(0, 1) per pixel and channel. In RGB
    that is N(mean, std) with ImageNet's statistics, so erased pixels may leave [0, 1]; clipping
    them would make another distribution of what the models see. All other pixels stay as they are.

    Args:
        image: RGB in [0, 1].
        probability: How often to erase at all.

    Source:
        Zhong et al., "Random Erasing Data Augmentation", arXiv:1708.04896, in timm's form: mode
        "pixel", one rectangle of 1/50 to 1/3 of the area.
    """
    # timm erases in place; where this canvas stays NaN, nothing was erased.
    canvas = torch.full_like(image, math.nan)
    RandomErasing(probability, mode="pixel", device="cpu")(canvas)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    image.copy_(torch.where(canvas.isnan(), image, canvas * std + mean))


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep so many bits of each channel.

    At its largest magnitude RandAugment asks for none, which is a black image. Pillow 13 refuses
    that, and a run would break off after some hundred images.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def _centre_crop(size: tuple[int, int], crop_pct: float, interpolation: str) -> list[Callable]:
    """Resize the short side and crop, as timm does; its last part makes a tensor."""
    whole = transforms_imagenet_eval(
        size, crop_pct=crop_pct, interpolation=interpolation, normalize=False
    )
    return whole.transforms[:-1]


def height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Both of one number."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size
