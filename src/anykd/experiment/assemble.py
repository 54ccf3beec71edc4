"""The objects that a recipe describes, put together and checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from anykd.data import DataSplits, EvalLoader, TrainLoader, open_data
from anykd.distributed import first_rank_first, rank, world_size
from anykd.engine import Trainer, choose_dtype
from anykd.errors import ModelError, RecipeError
from anykd.methods import Method, build_method
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.recipe import ModelConfig, Recipe, TeacherConfig

__all__ = ["Parts", "assemble", "build_teacher", "eval_loader"]


@dataclass(frozen=True)
class Parts:
    """What a run consists of.

    Attributes:
        image_size: (height, width) of the images that the loaders give.
    """

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype | None
    data: DataSplits
    student: StagedModel
    teacher: FrozenTeacher | None
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
    torch.manual_seed(recipe.seed)
    student = _build_student(recipe.student, recipe, data)
    config = recipe.teacher
    teacher = None if config is None else build_teacher(config, recipe.image_size, data)
    # Loading a teacher draws random numbers; branches must not depend on which teacher it is.
    torch.manual_seed(recipe.seed)
    method = build_method(recipe.method_name, student, teacher, **recipe.method_options)
    image_size = _larger_size(student, teacher)
    loader = _train_loader(recipe, data, image_size)
    trainer = Trainer(method, student, loader, recipe.train, device=device, seed=recipe.seed)
    if teacher is not None:
        teacher.to(device, memory_format=trainer.layout)
    dtype = choose_dtype(recipe.train.precision, device)
    return Parts(recipe, device, dtype, data, student, teacher, method, image_size, trainer)


def _build_student(config: ModelConfig, recipe: Recipe, data: DataSplits) -> StagedModel:
    return create_staged(
        config.name,
        num_classes=data.num_classes,
        image_size=config.image_size or recipe.image_size,
        pretrained=config.pretrained,
        weights=config.weights,
        **config.options,
    )


def build_teacher(
    config: TeacherConfig, image_size: int | tuple[int, int] | None, data: DataSplits
) -> FrozenTeacher:
    """Load a model with weights and make sure that it knows the data's classes.

    Args:
        config: Which model.
        image_size: Pixels, where the config does not say.
        data: Whose classes count.

    Raises:
        ModelError: If it has no weights, or scores another number of classes: its head would be
            random, and a random head is never trained against.
    """
    is_run = Path(config.name).is_dir()
    options = dict(config.options)
    if config.weights is not None:
        # The file must hold a head for these classes; loading is strict.
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
    if teacher.num_classes != data.num_classes:
        raise ModelError(
            f"{config.name} knows {teacher.num_classes} classes, "
            f"{data.name} has {data.num_classes}",
            hint=f"fine-tune it first: anykd train --model {config.name} --data {data.name} "
            "--set student.pretrained=true, and give the run directory",
        )
    return FrozenTeacher(teacher)


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


def _larger_size(student: StagedModel, teacher: FrozenTeacher | None) -> tuple[int, int]:
    """The larger of both models' sizes, so that neither sees more blur than it must."""
    sizes = [student.image_size] + ([] if teacher is None else [teacher.image_size])
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
