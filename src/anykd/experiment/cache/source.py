"""What a cache is built from: a teacher with its head, images, and how they are shown."""

from dataclasses import dataclass
from typing import Any

import torch

from anykd.data import DataSplits, TrainViews, open_data
from anykd.data.cache import Codec, Layout, Manifest
from anykd.distributed import first_rank_first
from anykd.engine import autocast, choose_dtype, precision_name
from anykd.errors import CacheError, RecipeError
from anykd.experiment.assemble import assemble, largest_size, train_views
from anykd.experiment.teachers import BuiltTeacher, Heads, build_teacher, compares
from anykd.methods import complete_tables, read_tables
from anykd.recipe import ModelConfig, Recipe, TeacherConfig
from anykd.types import Batch, FeaturePart, Features

from .manifest import data_part, describe_teacher, describe_views

__all__ = ["CacheSource", "open_source"]


@dataclass(frozen=True)
class CacheSource:
    """A teacher and what it is asked about.

    Attributes:
        recipe: The experiment with this teacher alone, as a recipe that opens it again.
        built: The teacher, on the device.
        data: Its images.
        views: How they are shown.
        reads: What the recipe's methods read of the teacher.
        device: Where it runs.
        dtype: Type for autocast, or None.
    """

    recipe: Recipe
    built: BuiltTeacher
    data: DataSplits
    views: TrainViews
    reads: frozenset[FeaturePart]
    device: torch.device
    dtype: torch.dtype | None

    def answer(self, batch: Batch) -> Features:
        """Let the teacher look at a batch, as a training step would."""
        moved = batch.to(self.device, memory_format=_layout(self.recipe))
        with autocast(self.device, self.dtype):
            return self.built.model(moved.images)

    def manifest(self, codec: Codec, built: dict[str, Any]) -> Manifest:
        """Say what a cache that is made now is made of.

        Args:
            codec: What it stores of an answer.
            built: When and with what it is made.
        """
        config = self.recipe.teachers[0]
        views = describe_views(self.views, self.recipe.data.max_pixels)
        layout = Layout.planned(
            num_views=views.num_views,
            num_slots=self.views.num_slots,
            record_bytes=codec.record_bytes,
        )
        return Manifest(
            teacher=describe_teacher(self.built.model, config),
            data=data_part(self.views, self.recipe.data.source),
            views=views,
            codec=codec,
            precision=precision_name(self.dtype),
            built=built,
            num_slots=layout.num_slots,
            shard_slots=layout.shard_slots,
        )


def open_source(recipe: Recipe, device: torch.device, heads: Heads, *, number: int) -> CacheSource:
    """Load a teacher and its data.

    Args:
        recipe: The experiment. A student that is the teacher itself stands for none; its size still
            counts.
        device: Where the teacher runs.
        heads: Where a new head comes from.
        number: Of the teacher in the recipe, counted from 1.

    Raises:
        AnykdError: If something cannot be had or does not fit, or views would never repeat.
    """
    if not any(table.method.needs_teacher for table in recipe.method_tables):
        recipe = recipe.model_copy(update={"methods": _tables("kd")})  # of the control arm
    config = _require_teacher(recipe, number).model_copy(update={"cache": None})
    _require_views(recipe)
    alone = _alone(recipe, config, number)
    if _same_but_for_size(recipe.student, alone.student):
        with first_rank_first():  # it may download
            data = open_data(recipe.data)
        built = build_teacher(alone, 1, alone.method_tables, data, device, heads)
        size = largest_size(built.model.image_size, recipe.student.image_size)
        reads: frozenset[FeaturePart] = frozenset()
    else:
        parts = assemble(_without_caches(recipe), device, heads)
        built, data, size = parts.built[number - 1], parts.data, parts.image_size
        reads = parts.method.reads_of(built.model)
        for method in parts.method.taught_by(built.model):
            if "stages" in method.reads:
                raise CacheError(*method.why_stages())
    student = alone.student.model_copy(update={"image_size": size})
    alone = alone.model_copy(update={"student": student})
    built.model.to(device, memory_format=_layout(recipe))
    dtype = choose_dtype(recipe.train.precision, device)
    views = train_views(alone, data, size).with_stand_ins()
    return CacheSource(alone, built, data, views, reads, device, dtype)


def _alone(recipe: Recipe, config: TeacherConfig, number: int) -> Recipe:
    """The teacher by itself, with a method that reads the same of it and no other student."""
    compared = compares(recipe.method_tables, number)
    update = {
        "teachers": (config,),
        "student": config.as_student(),
        "methods": _tables("kd" if compared else "rsd"),
    }
    return recipe.model_copy(update=update)


def _tables(method: str) -> tuple[dict[str, Any], ...]:
    return tuple(complete_tables(read_tables([{"name": method}])))


def _same_but_for_size(one: ModelConfig, other: ModelConfig) -> bool:
    return all(
        getattr(one, key) == getattr(other, key)
        for key in ModelConfig.model_fields
        if key != "image_size"
    )


def _require_teacher(recipe: Recipe, number: int) -> TeacherConfig:
    if not 1 <= number <= len(recipe.teachers):
        raise RecipeError(
            f"teacher {number} is asked for, and the recipe has {len(recipe.teachers)}",
            hint="give --teacher MODEL, or --number N of one of several, counted from 1",
        )
    config = recipe.teachers[number - 1]
    if config.head == "finetune":
        raise RecipeError(
            "a teacher that is to be finetuned first has no outputs yet",
            hint=f"train it: anykd train --model {config.name} --data SPEC --set "
            "student.pretrained=true --out RUN; then give --teacher RUN",
        )
    return config


def _require_views(recipe: Recipe) -> None:
    """Refuse views without end."""
    if recipe.augment.varies and recipe.augment.num_views is None:
        raise RecipeError(
            "every epoch shows new views, which no cache can hold",
            hint=f"say how many there are of each image: --views 10 lets a run of "
            f"{recipe.train.epochs} epochs show each of them {recipe.train.epochs / 10:g} times",
        )


def _without_caches(recipe: Recipe) -> Recipe:
    teachers = tuple(config.model_copy(update={"cache": None}) for config in recipe.teachers)
    return recipe.model_copy(update={"teachers": teachers})


def _layout(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.train.channels_last else torch.contiguous_format
