"""The objects that a recipe describes, put together and checked before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch

from anykd.data import DataSplits, EvalLoader, TrainLoader, open_data
from anykd.distributed import first_rank_first, rank, world_size
from anykd.engine import Trainer, choose_dtype
from anykd.errors import DataError, ModelError, RecipeError
from anykd.methods import Method, MethodTable, build_methods, no_labels
from anykd.models import FrozenTeacher, StagedModel, create_staged, require_known
from anykd.recipe import Recipe, TeacherConfig

__all__ = ["Parts", "assemble", "build_teacher", "eval_loader", "require_classes"]


@dataclass(frozen=True)
class Parts:
    """What a run consists of.

    Attributes:
        compared: The teachers whose class scores are compared with the student's.
        image_size: (height, width) of the images that the loaders give.
    """

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype | None
    data: DataSplits
    student: StagedModel
    teachers: tuple[FrozenTeacher, ...]
    compared: tuple[FrozenTeacher, ...]
    method: Method
    image_size: tuple[int, int]
    trainer: Trainer


def assemble(recipe: Recipe, device: torch.device) -> Parts:
    """Make everything that a recipe names.

    Args:
        recipe: The experiment.
        device: Where models go.

    Raises:
        AnykdError: If something cannot be had or does not fit.
    """
    with first_rank_first():  # it may download
        data = open_data(recipe.data)
    require_known(recipe.student.name)
    tables = tuple(_with_samples(table, len(data.train)) for table in recipe.method_tables)
    teachers = _build_teachers(recipe, tables, data)
    # Loading a teacher draws random numbers; the student must not depend on which teacher it is.
    torch.manual_seed(recipe.seed)
    compared = tuple(
        teacher for number, teacher in enumerate(teachers, start=1) if _compares(tables, number)
    )
    student = _build_student(recipe, tables, data, compared)
    torch.manual_seed(recipe.seed)
    weights = (config.weight for config in recipe.teachers)
    # Shorter where the control arm leaves the recipe's teachers alone.
    method = build_methods(tables, student, list(zip(teachers, weights, strict=False)))
    if data.train.labels is not None:
        method.know_labels(torch.tensor(data.train.labels))
    elif method.needs_labels:
        raise DataError(*no_labels(method))
    image_size = _largest_size(student, *teachers)
    loader = _train_loader(recipe, data, image_size)
    trainer = Trainer(method, student, loader, recipe.train, device=device, seed=recipe.seed)
    for teacher in teachers:
        teacher.to(device, memory_format=trainer.layout)
    dtype = choose_dtype(recipe.train.precision, device)
    return Parts(
        recipe, device, dtype, data, student, teachers, compared, method, image_size, trainer
    )


def _with_samples(table: MethodTable, num_samples: int) -> MethodTable:
    """Tell a method with a memory how many images it has to remember."""
    asked = getattr(table.config, "num_samples", num_samples)
    if asked is None:
        config = table.config.model_copy(update={"num_samples": num_samples})
        return replace(table, config=config)
    if asked < num_samples:
        raise RecipeError(
            f"method.num_samples is {asked}, but there are {num_samples} training images",
            hint="leave it out: it is taken from the data",
        )
    return table


def _build_teachers(
    recipe: Recipe, tables: Sequence[MethodTable], data: DataSplits
) -> tuple[FrozenTeacher, ...]:
    """Load the teachers, where any is needed, each with the classes that it is compared by."""
    if not any(table.method.needs_teacher for table in tables):
        return ()
    teachers = []
    for number, config in enumerate(recipe.teachers, start=1):
        teacher = build_teacher(config, recipe.image_size, data)
        if data.num_classes and _compares(tables, number):
            require_classes(teacher, config, data)
        teachers.append(teacher)
    return tuple(teachers)


def _compares(tables: Sequence[MethodTable], number: int) -> bool:
    """Whether a method reads the class scores of the teacher of a number, counted from 1."""
    return any(table.teaches(number) and table.config.reads_logits for table in tables)


def _build_student(
    recipe: Recipe,
    tables: Sequence[MethodTable],
    data: DataSplits,
    compared: Sequence[FrozenTeacher],
) -> StagedModel:
    """Make the student: of the data's classes, else of those that a teacher is compared by."""
    config = recipe.student
    options = dict(config.options)
    classes = data.num_classes or (compared[0].num_classes if compared else 0)
    asked = options.setdefault("num_classes", classes)
    needs_head = any(table.config.task_weight or table.config.reads_logits for table in tables)
    if data.num_classes and asked != classes and (asked or needs_head):
        raise RecipeError(
            f"student.options.num_classes is {asked}, but {data.name} has {classes} classes",
            hint="leave it out: it is taken from the data",
        )
    return create_staged(
        config.name,
        image_size=config.image_size or recipe.image_size,
        pretrained=config.pretrained,
        weights=config.weights,
        **options,
    )


def build_teacher(
    config: TeacherConfig, image_size: int | tuple[int, int] | None, data: DataSplits
) -> FrozenTeacher:
    """Load a model with weights.

    Args:
        config: Which model.
        image_size: Pixels, where the config does not say.
        data: Whose classes a file of weights is for, unless the options say otherwise.

    Raises:
        ModelError: If it has no weights: its classes would be random.
    """
    is_run = Path(config.name).is_dir()
    options = dict(config.options)
    if config.weights is not None:
        # The file must hold a head for these classes; loading is strict.
        if data.num_classes:
            options.setdefault("num_classes", data.num_classes)
    elif not is_run:
        _require_weights(config)
    # A run keeps the size that it was trained at, unless its own table says otherwise.
    size = config.image_size or (None if is_run else image_size)
    teacher = create_staged(
        config.name,
        image_size=size,
        pretrained=config.weights is None,
        weights=config.weights,
        **options,
    )
    return FrozenTeacher(teacher)


def require_classes(teacher: FrozenTeacher, config: TeacherConfig, data: DataSplits) -> None:
    """Refuse a model that scores other classes than the data's.

    Raises:
        ModelError: A new head would be random, and a random head is never trained against.
    """
    if teacher.num_classes == data.num_classes:
        return
    flag = "" if Path(config.name).is_dir() else " --set student.pretrained=true"
    raise ModelError(
        f"{config.name} knows {teacher.num_classes} classes, {data.name} has {data.num_classes}",
        hint=f"fine-tune it first: anykd train --model {config.name} --data {data.name}{flag}, and "
        "give the run directory; or let only methods that compare features learn from it, such as "
        "rsd",
    )


def _require_weights(config: TeacherConfig) -> None:
    known_without = timm.is_model(config.name.partition(".")[0])
    if ":" in config.name or not known_without or timm.is_model_pretrained(config.name):
        return
    if "." in config.name:
        return  # an unknown tag, which create_staged names
    raise ModelError(
        f"{config.name} has no pretrained weights, its classes would be random",
        hint="train it with `anykd train` and give the run directory, or give teacher.weights",
    )


def _largest_size(*models: StagedModel | FrozenTeacher) -> tuple[int, int]:
    """The largest of the models' sizes, so that none sees more blur than it must."""
    sizes = [model.image_size for model in models]
    return max(size[0] for size in sizes), max(size[1] for size in sizes)


def _train_loader(recipe: Recipe, data: DataSplits, image_size: tuple[int, int]) -> TrainLoader:
    batch_size, ranks = recipe.train.batch_size, world_size()
    if batch_size % ranks:
        raise RecipeError(
            f"train.batch_size {batch_size} does not divide over {ranks} ranks",
            hint=f"choose a multiple of {ranks}",
        )
    return TrainLoader(
        data.train,
        num_classes=data.num_classes,
        image_size=image_size,
        batch_size=batch_size // ranks,
        augment=recipe.augment,
        label_smoothing=recipe.train.label_smoothing,
        seed=recipe.seed,
        workers=recipe.data.workers,
        rank=rank(),
        world_size=ranks,
    )


def eval_loader(data: DataSplits, recipe: Recipe, image_size: tuple[int, int]) -> EvalLoader:
    """Make the loader of the held-out images, each once over all ranks."""
    return EvalLoader(
        data.val,
        num_classes=data.num_classes,
        image_size=image_size,
        batch_size=min(recipe.train.batch_size, 256),
        augment=recipe.augment,
        workers=recipe.data.workers,
        rank=rank(),
        world_size=world_size(),
    )
