"""The settings of augmentation, and the presets of the published tables."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from anykd.config import FrozenConfig

__all__ = ["AugmentConfig"]

Probability = Annotated[float, Field(ge=0, le=1)]

# timm asserts on an unknown section, or skips it in silence.
_RAND_AUGMENT = re.compile(
    r"rand(-(m|n|mmax|inc)\d+|-(mstd|p)\d+(\.\d+)?|-t(weights|3aw|3a))*", re.ASCII
)

_NO_CROP = (1.0, 1.0)
_NONE: dict[str, Any] = {
    "crop_scale": _NO_CROP,
    "crop_padding": 0,
    "flip": 0.0,
    "color_jitter": 0.0,
    "rand_augment": "",
    "mixup": 0.0,
    "cutmix": 0.0,
    "erasing": 0.0,
}
_CNN = _NONE | {"crop_scale": (0.08, 1.0), "flip": 0.5}
_VIT = _CNN | {
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "erasing": 0.25,
}
_PRESETS = {"cnn": _CNN, "vit": _VIT, "none": _NONE}


class AugmentConfig(FrozenConfig):
    """How training images are varied, and how images are cropped for evaluation.

    A preset gives every field a value; a field that is not None overrides it.

    Source:
        Presets: the CIFAR-100 and ImageNet tables of Hao et al., "One-for-All", NeurIPS 2023,
        arXiv:2310.19444, for CNN students and for ViT and MLP students.
    """

    preset: Literal["cnn", "vit", "none"] = "cnn"
    """cnn: random resized crop and flip. vit: also RandAugment, mixup, cutmix and erasing. none:
    resize and centre crop only."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the area that a random resized crop takes. (1, 1) is no
    random crop, but the centre crop of evaluation."""
    crop_padding: NonNegativeInt | None = None
    """Pixels added on each side at output size, before a random crop of the output size: what
    CIFAR recipes at native size do. Above 0 it takes the place of the random resized crop."""
    flip: Probability | None = None
    """Probability of a left-right flip."""
    color_jitter: NonNegativeFloat | None = None
    """Largest relative change of brightness, contrast and saturation."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; empty for none."""
    mixup: NonNegativeFloat | None = None
    """Alpha of mixup's Beta distribution; 0 for none. In each view the images are paired anew, and
    both of a pair are mixed with one share; with cutmix, each pair has one of the two."""
    cutmix: NonNegativeFloat | None = None
    """Alpha of cutmix's Beta distribution; 0 for none."""
    erasing: Probability | None = None
    """Probability that a rectangle of an image is replaced by noise."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Evaluation: share of the resized image's short side that the centre crop keeps."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """How images are resized, in training and in evaluation."""
    num_views: PositiveInt | None = None
    """Different views of each image: epoch e shows view e modulo num_views. None makes new ones in
    every epoch. A teacher's outputs can be stored for a number of views (docs/guides/cache.md)."""
    view_seed: NonNegativeInt | None = None
    """Decides every view; None takes the recipe's seed. Runs of other seeds see the views that a
    teacher's outputs are stored for only if they have this in common."""

    @field_validator("crop_scale")
    @classmethod
    def _scale_is_a_range_of_shares(
        cls, scale: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"crop_scale must be 0 < smallest <= largest <= 1, got {scale}")
        return scale

    @field_validator("rand_augment")
    @classmethod
    def _rand_augment_is_timm_notation(cls, policy: str | None) -> str | None:
        if policy and not _RAND_AUGMENT.fullmatch(policy):
            raise ValueError(
                f"rand_augment must look like rand-m9-mstd0.5-inc1 or be empty, got {policy!r}"
            )
        return policy

    @model_validator(mode="after")
    def _one_kind_of_crop(self) -> "AugmentConfig":
        if self.crop_padding and self.crop_scale not in (None, _NO_CROP):
            raise ValueError("crop_padding and crop_scale are two kinds of crop: give one of them")
        return self

    @model_validator(mode="after")
    def _rand_augment_can_rotate(self) -> "AugmentConfig":
        policy = _PRESETS[self.preset]["rand_augment"] if self.rand_augment is None else ""
        if (self.rand_augment or policy) and self.interpolation == "lanczos":
            raise ValueError(
                "RandAugment rotates images, which Pillow does by nearest, bilinear or bicubic "
                'alone: interpolation = "lanczos" needs rand_augment = ""'
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        settings = self.resolved()
        return bool(settings.mixup or settings.cutmix)

    @property
    def varies(self) -> bool:
        """Whether an image may look different from view to view."""
        settings = self.resolved()
        return bool(
            settings.crop_padding
            or settings.crop_scale != _NO_CROP
            or settings.flip
            or settings.color_jitter
            or settings.rand_augment
            or settings.mixup
            or settings.cutmix
            or settings.erasing
        )

    def view_settings(self) -> dict[str, Any]:
        """All that decides how a training image may look, beside the seed and its size."""
        unused = {"preset", "num_views", "view_seed"}
        settings = self.resolved()
        if settings.crop_padding or settings.crop_scale != _NO_CROP:
            unused.add("crop_pct")
        return settings.model_dump(mode="json", exclude=unused)

    def resolved(self) -> "AugmentConfig":
        """Fill every field that is None from the preset.

        Example:
            >>> AugmentConfig(preset="cnn", mixup=0.2).resolved().crop_scale
            (0.08, 1.0)
        """
        given = {name: value for name, value in self if value is not None}
        values = _PRESETS[self.preset] | given
        if values["crop_padding"]:
            values["crop_scale"] = _NO_CROP
        return AugmentConfig(**values)
