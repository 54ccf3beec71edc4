"""The teachers of a recipe: loaded with weights, and with classes that the data has."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anykd.data import DataSplits
from anykd.distributed import from_first_rank
from anykd.engine import choose_dtype
from anykd.errors import CheckpointError, DataError, ModelError
from anykd.files import expanded
from anykd.methods import MethodTable
from anykd.models import (
    FrozenTeacher,
    StagedModel,
    create_staged,
    has_weights,
    require_known,
)
from anykd.recipe import ModelConfig, Recipe, TeacherConfig
from anykd.rundir import RunDir

from .teacher_classes import TeacherClasses, resolve_classes
from .teacher_head import LinearHead, fit_head, load_head

__all__ = [
    "BuiltTeacher",
    "Heads",
    "build_teacher",
    "build_teachers",
    "compares",
    "finetuned_teachers",
    "load_with_weights",
    "teacher_recipe",
]


_WAYS_OUT = (
    "give it a new head: --teacher-head probe fits a linear one on its features, --teacher-head "
    "finetune trains it first; or let only methods that compare features learn from it, such as rsd"
)


@dataclass(frozen=True)
class BuiltTeacher:
    """A teacher, and how it comes by the data's classes.

    Attributes:
        model: The teacher.
        classes: How its logits are the data's classes.
        head: The probe that was fitted for it, or None.
        has_learnt: False where its head is random: nobody asks for it, or a plan shows what a run
            would be.
    """

    model: FrozenTeacher
    classes: TeacherClasses
    head: LinearHead | None = None
    has_learnt: bool = True


@dataclass(frozen=True)
class Heads:
    """Where new heads come from.

    Attributes:
        directory: The run that keeps them.
        resumed: Whether a probe that the run keeps is taken, instead of fitting it anew.
    """

    directory: RunDir
    resumed: bool


def build_teachers(
    recipe: Recipe,
    tables: Sequence[MethodTable],
    data: DataSplits,
    device: torch.device,
    heads: Heads | None,
) -> tuple[BuiltTeacher, ...]:
    """Load the teachers, where any is needed, each with the classes that it is compared by.

    Args:
        recipe: The experiment.
        tables: Its methods.
        data: What is learnt from.
        device: Where teachers run to have a head fitted.
        heads: Where new heads come from. None trains nothing: heads that are yet to be made are
            random, to show what fits and to measure what it costs.

    Raises:
        AnykdError: If a model cannot be had, or its classes are not the data's.
    """
    if not any(table.method.needs_teacher for table in tables):
        return ()
    numbers = range(1, len(recipe.teachers) + 1)
    return tuple(build_teacher(recipe, number, tables, data, device, heads) for number in numbers)


def build_teacher(
    recipe: Recipe,
    number: int,
    tables: Sequence[MethodTable],
    data: DataSplits,
    device: torch.device,
    heads: Heads | None,
) -> BuiltTeacher:
    """Load one of the teachers, as `build_teachers` does.

    Args:
        recipe: The experiment.
        number: Of the teacher, counted from 1.
        tables: As for `build_teachers`, like the rest.
        data: What is learnt from.
        device: Where it runs to have a head fitted.
        heads: Where a new head comes from.

    Raises:
        AnykdError: If it cannot be had, or its classes are not the data's.
    """
    if compares(tables, number):
        return _build_compared(recipe, number, data, device, heads)
    return _build_seen(recipe, number, data)


def compares(tables: Sequence[MethodTable], number: int) -> bool:
    """Whether a method reads the class scores of the teacher of a number, counted from 1."""
    return any(table.teaches(number) and table.config.reads_logits for table in tables)


def _build_seen(recipe: Recipe, number: int, data: DataSplits) -> BuiltTeacher:
    """A teacher of which features alone are compared."""
    config = recipe.teachers[number - 1]
    model = load_with_weights(config, recipe.image_size, data.num_classes, new_head=True)
    stored = _stored_head(config)
    if stored is not None:
        model.replace_classifier(load_head(stored).as_layer())  # it is of the cache's teacher
    classes = TeacherClasses("none needed", model.num_classes)
    if config.head is not None or config.classes is not None:
        asked = "head" if config.head is not None else "classes"
        classes = replace(
            classes,
            warning=f"teacher.{asked} is not used: no method compares the class scores of "
            f"{config.name}",
            remedy="leave it out, or choose a method that compares them, such as ofa",
        )
    random = model.loaded is not None and model.loaded.new_head
    return BuiltTeacher(FrozenTeacher(model), classes, has_learnt=not random)


def _build_compared(
    recipe: Recipe, number: int, data: DataSplits, device: torch.device, heads: Heads | None
) -> BuiltTeacher:
    config = recipe.teachers[number - 1]
    if config.head is not None and (data.train.labels is None or not data.num_classes):
        raise DataError(
            f"teacher.head = {config.head!r} needs labels to train on, and the training images of "
            f"{data.name} have none",
            hint="leave it out: without labels the student learns the teacher's own classes",
        )
    if config.head == "finetune" and heads is not None:
        return _finetuned(heads.directory.teacher(number), config, data)
    replaced = config.head is not None
    model = load_with_weights(config, recipe.image_size, data.num_classes, new_head=replaced)
    if replaced:
        return _with_new_head(model, recipe, number, data, device, heads)
    if not data.num_classes:
        return BuiltTeacher(FrozenTeacher(model), TeacherClasses("own", model.num_classes))
    classes = resolve_classes(model, data, name=config.name, given=config.classes, hint=_WAYS_OUT)
    return BuiltTeacher(FrozenTeacher(model, classes.chosen), classes)


def _finetuned(directory: RunDir, config: TeacherConfig, data: DataSplits) -> BuiltTeacher:
    """The teacher that a run of its own has trained."""
    if not directory.finished:
        raise CheckpointError(
            f"{directory.path} is not finished, and {config.name} was to be trained there",
            hint="continue with --resume",
        )
    # The run's own config holds size, mean and deviation by now.
    model = load_with_weights(TeacherConfig(name=str(directory.path)), None, data.num_classes)
    classes = TeacherClasses("finetuned", model.num_classes, data.class_names)
    return BuiltTeacher(FrozenTeacher(model), classes)


def _with_new_head(
    model: StagedModel,
    recipe: Recipe,
    number: int,
    data: DataSplits,
    device: torch.device,
    heads: Heads | None,
) -> BuiltTeacher:
    """Give a teacher a linear classifier: fitted, kept from before, or random for a plan."""
    config = recipe.teachers[number - 1]
    kind = "probe" if config.head == "probe" else "finetuned"
    classes = TeacherClasses(kind, model.num_classes, data.class_names)
    if heads is None:
        model.replace_classifier(nn.Linear(model.width, data.num_classes))
        return BuiltTeacher(FrozenTeacher(model), classes, has_learnt=False)
    kept = heads.directory.teacher_head(number)
    stored = _stored_head(config)

    def make() -> LinearHead:
        if heads.resumed and kept.is_file():
            return load_head(kept)
        if stored is not None:
            return load_head(stored)  # the one that gave what is stored
        return fit_head(
            FrozenTeacher(model).to(device),
            data,
            recipe,
            max_samples=config.head_samples,
            crop_pct=config.crop_pct,
            device=device,
            dtype=choose_dtype(recipe.train.precision, device),
        )

    head = from_first_rank(make)
    model.replace_classifier(head.as_layer())
    return BuiltTeacher(FrozenTeacher(model), replace(classes, head=head.scores), head)


def _stored_head(config: TeacherConfig) -> Path | None:
    """The head that was fitted for the teacher of a cache; None without one."""
    if config.cache is None or config.head is None:
        return None
    path = RunDir(expanded(config.cache)).teacher_head(1)
    return path if path.is_file() else None


def load_with_weights(
    config: ModelConfig | TeacherConfig,
    image_size: int | tuple[int, int] | None,
    num_classes: int,
    *,
    new_head: bool = False,
) -> StagedModel:
    """Load a model that is not trained from scratch.

    Args:
        config: Which model.
        image_size: Pixels, where the config does not say.
        num_classes: Length of the data's labels, or 0. A file of weights may be for these classes,
            or for those that the architecture has by itself.
        new_head: Whether its class scores do not matter: then the file need not hold a head.

    Raises:
        ModelError: If it has no weights: its classes would be random.
    """
    require_known(config.name)
    if config.weights is None and not has_weights(config.name):
        raise ModelError(
            f"{config.name} has no pretrained weights, its classes would be random",
            hint="train it with `anykd train` and give the run directory, or give teacher.weights",
        )
    options: dict[str, Any] = config.options | config.build_options()
    # A run keeps the size that it was trained at, unless its own table says otherwise.
    is_run = Path(config.name).is_dir()
    options["image_size"] = config.image_size or (None if is_run else image_size)
    if config.weights is None:
        return create_staged(config.name, pretrained=True, **options)
    options["weights"] = config.weights
    attempts: list[dict[str, Any]] = [{}]
    if num_classes and "num_classes" not in config.options:
        attempts.append({"num_classes": num_classes})
    if new_head:
        attempts.append({"new_head": True})
    errors: list[ModelError] = []
    for attempt in attempts:
        try:
            return create_staged(config.name, **options, **attempt)
        except ModelError as error:
            errors.append(error)
    raise errors[0]


def finetuned_teachers(recipe: Recipe) -> tuple[int, ...]:
    """Numbers, from 1, of the teachers that are trained before they teach."""
    tables = recipe.method_tables
    return tuple(
        number
        for number, config in enumerate(recipe.teachers, start=1)
        if config.head == "finetune" and compares(tables, number)
    )


def teacher_recipe(recipe: Recipe, number: int) -> Recipe:
    """The experiment that trains a teacher first: on the same data, with the same augmentation.

    Args:
        recipe: The experiment that it is for.
        number: Of the teacher, counted from 1; its ``head`` is ``finetune``.
    """
    config = recipe.teachers[number - 1]
    assert config.finetune is not None
    train = recipe.train.model_dump(exclude={"warmup_epochs", "min_lr"})
    train |= {key: value for key, value in config.finetune if value is not None}
    train["min_lr"] = min(recipe.train.min_lr, config.finetune.peak_lr)
    values: dict[str, Any] = {
        "seed": recipe.seed,
        "student": config.as_student().model_dump(exclude_none=True),
        "data": recipe.data.model_dump(exclude_none=True),
        "augment": recipe.augment.model_dump(exclude_none=True),
        "train": {key: value for key, value in train.items() if value is not None},
        "analysis": recipe.analysis.model_dump(),
    }
    if recipe.image_size is not None and not Path(config.name).is_dir():
        values["image_size"] = recipe.image_size
    return Recipe.from_dict(values)
