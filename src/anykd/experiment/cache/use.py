"""A cache in a teacher's place: the views that it asks for, and whether it fits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anykd.data import TrainViews
from anykd.data.cache import Cache, Manifest
from anykd.errors import CacheError
from anykd.experiment.teachers import BuiltTeacher
from anykd.files import expanded
from anykd.models import StoredTeacher
from anykd.recipe import Recipe, TeacherConfig
from anykd.types import Stored

from .compare import compare, tolerated
from .manifest import data_part, describe_teacher, describe_views

__all__ = ["adopt_views", "open_cache", "with_caches"]

_ASKED = 4
"""Images that the live teacher looks at before a run; an even number, since they may be mixed."""


def adopt_views(recipe: Recipe) -> Recipe:
    """Let a run show the views that its teachers' outputs are stored for, where it says no others.

    That holds for its control arm too: the arms of a comparison see the same images.

    Args:
        recipe: The experiment.

    Raises:
        CacheError: If there is no such cache, or it is not finished.
    """
    stored = [
        open_cache(config.cache).manifest.views
        for config in recipe.teachers
        if config.cache is not None
    ]
    if not stored:
        return recipe
    # A cache also serves those who want fewer of its views.
    told = {"num_views": min(views.num_views for views in stored), "view_seed": stored[0].seed}
    augment = recipe.augment
    update = {key: value for key, value in told.items() if getattr(augment, key) is None}
    return recipe.model_copy(update={"augment": augment.model_copy(update=update)})


def open_cache(path: str | Path) -> Cache:
    """Open a finished cache.

    Raises:
        CacheError: If there is none, or it is not finished.
    """
    folder = expanded(path)
    if not folder.is_dir():
        raise CacheError(
            f"there is no cache at {path}",
            hint=f"build it: anykd cache build RECIPE --out {path}",
        )
    return Cache(folder)


def with_caches(
    recipe: Recipe, built: Sequence[BuiltTeacher], views: TrainViews
) -> tuple[tuple[BuiltTeacher, ...], tuple[Cache | None, ...]]:
    """Put stored outputs in the place of the teachers that have some.

    Args:
        recipe: The experiment.
        built: Its teachers, loaded, and with the heads that they teach with.
        views: What training shows.

    Returns:
        The teachers, and what is stored of each; nothing where none has a cache.

    Raises:
        CacheError: If a cache is not of this teacher, these images or these views.
    """
    views = views.with_stand_ins()
    configs = recipe.teachers[: len(built)]
    if not any(config.cache for config in configs):
        return tuple(built), ()
    teachers, caches = [], []
    for slot, (one, config) in enumerate(zip(built, configs, strict=True)):
        cache = None
        if config.cache is not None:
            cache = open_cache(config.cache)
            _require_fit(cache, one, config, recipe, views)
            one = replace(one, model=_stored(one, cache.manifest, slot))
        teachers.append(one)
        caches.append(cache)
    return tuple(teachers), tuple(caches)


def _stored(built: BuiltTeacher, manifest: Manifest, slot: int) -> StoredTeacher:
    teacher, holds = built.model, manifest.codec.parts
    if not _is_compared(built):
        holds -= {"logits"}  # they may be of classes that nobody reads
    return StoredTeacher(
        teacher.model,
        teacher.classes,
        slot=slot,
        has_logits="logits" in holds,
        has_pooled="pooled" in holds,
    )


def _is_compared(built: BuiltTeacher) -> bool:
    """Whether a method reads the teacher's class scores."""
    return built.classes.kind != "none needed"


def _require_fit(
    cache: Cache, built: BuiltTeacher, config: TeacherConfig, recipe: Recipe, views: TrainViews
) -> None:
    """Refuse a cache of another teacher, of other images or of other views of them."""
    manifest = cache.manifest
    if views.count is None:
        raise CacheError(
            f"the run shows new views in every epoch, and {cache.path} holds "
            f"{manifest.views.num_views} of each image",
            hint="leave augment.num_views out, so that it follows from the cache",
        )
    teacher = describe_teacher(built.model, config)
    if not _is_compared(built):
        own = {"classes": manifest.teacher.classes, "num_classes": manifest.teacher.num_classes}
        teacher = teacher.model_copy(update=own)
    asked = manifest.model_copy(
        update={
            "teacher": teacher,
            "data": data_part(views, recipe.data.source),
            "views": describe_views(views, recipe.data.max_pixels),
            "num_slots": views.num_slots,
        }
    )
    misfits = manifest.misfits(asked)
    if misfits:
        raise CacheError(
            f"{cache.path} does not fit this run: {'; '.join(misfits)}",
            hint=_way_out(misfits),
        )
    _require_same_answers(cache, built, views)


def _require_same_answers(cache: Cache, built: BuiltTeacher, views: TrainViews) -> None:
    """Ask the live teacher about a few images: what a name and weights do not tell, it shows.

    Such as an option of the architecture, or a library that computes another activation.
    """
    slots = list(range(min(_ASKED, views.num_slots)))
    images = views.show(0, views.layout(0)[slots].tolist()).images
    answer = built.model(images.to(built.model.model.mean.device))
    logits = answer.logits.float().cpu() if _is_compared(built) else None
    live = Stored(logits, answer.pooled.float().cpu())
    found = compare(cache.manifest.codec, cache.records(0, slots), live)
    most_logits, most_pooled = tolerated(cache.manifest, found)
    if found.logits.max() > most_logits or found.pooled.max() > most_pooled:
        raise CacheError(
            f"{cache.path} is of this teacher's weights, but the teacher says something else now: "
            f"class scores differ by up to {found.logits.max():.3g}, pooled values by up to "
            f"{found.pooled.max():.3g}",
            hint="give the teacher the options that the cache was built with (its recipe.toml), or "
            f"see `anykd cache verify {cache.path}`",
        )


def _way_out(misfits: Sequence[str]) -> str:
    first = misfits[0].partition(":")[0]
    if first in ("views.num_views", "views.seed"):
        return "leave augment.num_views and augment.view_seed out: they follow from the cache"
    if first == "views.image_size":
        return "build it for the larger of both models' sizes: anykd cache build with --student"
    return "build one for this run: anykd cache build, or leave teacher.cache out"
