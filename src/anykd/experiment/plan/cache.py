"""What it would take to store the teachers' outputs instead of computing them at every step."""

import math
from dataclasses import dataclass

from anykd.experiment.assemble import Parts

__all__ = ["CacheSize", "cache_size"]

_TOP = 10
_HALF = 2
"""Bytes of a float16."""


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the stored outputs of all teachers.

    Attributes:
        images: Training images.
        views: Different views of each: one, or as many as epochs where images are augmented.
        logits_bytes: All class scores in float16; 0 where none are compared.
        top_k: How many of the best scores a smaller cache keeps.
        top_k_bytes: These in float16, with their classes in 16 bits.
        pooled_bytes: The vectors before the classifier in float16; 0 where no term reads them.
        stage_bytes: The stage maps in float16; 0 where no term reads them.
        formula: How these follow.
    """

    images: int
    views: int
    logits_bytes: int
    top_k: int
    top_k_bytes: int
    pooled_bytes: int
    stage_bytes: int
    formula: str = (
        "images x views x 2 bytes x (classes, or 2 x top_k; pooled width; stage values), over all "
        "teachers"
    )


def cache_size(parts: Parts) -> CacheSize | None:
    """Compute what a cache of the teachers would hold; None without a teacher."""
    if not parts.teachers:
        return None
    targets = {join.target for join in parts.method.joins()}
    stages = {place for place in targets if isinstance(place, int)}
    images, views = len(parts.data.train), _views(parts)
    numbers = dict.fromkeys(("logits", "top", "pooled", "stages"), 0)
    for teacher in parts.teachers:
        if teacher in parts.compared:
            numbers["logits"] += teacher.num_classes
            # A class takes as much as a score.
            numbers["top"] += 2 * min(_TOP, teacher.num_classes)
        if "pooled" in targets:
            numbers["pooled"] += teacher.width
        numbers["stages"] += sum(math.prod(teacher.shapes[stage - 1]) for stage in stages)
    size = {name: images * views * _HALF * number for name, number in numbers.items()}
    return CacheSize(
        images, views, size["logits"], _TOP, size["top"], size["pooled"], size["stages"]
    )


def _views(parts: Parts) -> int:
    """How often an image is seen differently."""
    augment = parts.recipe.augment.resolved()
    varied = (
        augment.crop_padding,
        augment.crop_scale != (1.0, 1.0),
        augment.flip,
        augment.color_jitter,
        augment.rand_augment,
        augment.mixup,
        augment.cutmix,
        augment.erasing,
    )
    return parts.recipe.train.epochs if any(varied) else 1
