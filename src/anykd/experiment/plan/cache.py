"""What it would take to store the teachers' outputs instead of computing them at every step."""

import math
from dataclasses import dataclass

from anykd.experiment.assemble import Parts
from anykd.methods import Method
from anykd.models import FrozenTeacher

__all__ = ["CacheSize", "cache_size"]

_TOP = 10
_HALF = 2
"""Bytes of a float16."""


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the stored outputs of all teachers.

    Attributes:
        images: Training images.
        views: Different views of each: one where images are not augmented, else
            ``augment.num_views``, or as many as epochs.
        logits_bytes: All class scores in float16; 0 where no term reads them.
        top_k: How many of the best scores a smaller cache keeps.
        top_k_bytes: These in float16, with their classes in 16 bits.
        pooled_bytes: The vectors before the classifier in float16; 0 where no term reads them.
        stage_bytes: The stage maps in float16; 0 where no term reads them. They are never stored.
        serves: For each teacher, whether a cache could take its place, and if not, why.
        formula: How these follow.
    """

    images: int
    views: int
    logits_bytes: int
    top_k: int
    top_k_bytes: int
    pooled_bytes: int
    stage_bytes: int
    serves: tuple[str, ...]
    formula: str = (
        "images x views x 2 bytes x (classes, or 2 x top_k; pooled width; stage values), over all "
        "teachers"
    )


def cache_size(parts: Parts) -> CacheSize | None:
    """Compute what a cache of the teachers would hold; None without a teacher."""
    if not parts.teachers:
        return None
    images, views = len(parts.data.train), _views(parts)
    numbers = dict.fromkeys(("logits", "top", "pooled", "stages"), 0)
    for teacher in parts.teachers:
        reads = parts.method.reads_of(teacher)
        if "logits" in reads:
            numbers["logits"] += teacher.num_classes
            # A class takes as much as a score.
            numbers["top"] += 2 * min(_TOP, teacher.num_classes)
        if "pooled" in reads:
            numbers["pooled"] += teacher.width
        numbers["stages"] += sum(
            math.prod(teacher.shapes[stage - 1]) for stage in _stages(parts.method, teacher)
        )
    size = {name: images * views * _HALF * number for name, number in numbers.items()}
    return CacheSize(
        images,
        views,
        size["logits"],
        _TOP,
        size["top"],
        size["pooled"],
        size["stages"],
        tuple(_serves(parts.method, teacher) for teacher in parts.teachers),
    )


def _views(parts: Parts) -> int:
    """How often an image is seen differently."""
    augment = parts.recipe.augment
    if not augment.varies:
        return 1
    return augment.num_views or parts.recipe.train.epochs


def _stages(method: Method, teacher: FrozenTeacher) -> set[int]:
    """Stages of a teacher that are compared."""
    return {
        join.target
        for part in method.taught_by(teacher)
        if "stages" in part.reads
        for join in part.joins()
        if isinstance(join.target, int)
    }


def _serves(method: Method, teacher: FrozenTeacher) -> str:
    """What a cache could do for a teacher."""
    parts = method.taught_by(teacher)
    for part in parts:
        if "stages" in part.reads:
            why, _ = part.why_stages()
            return f"needs the live teacher: {why}"
    if any(part.runs_tail for part in parts):
        return "a cache could take the teacher's place; only its tail, stage 4 and head, runs live"
    return "a cache could take the teacher's place"
