"""The objects that a recipe describes, put together and checked before anything is written."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from anykd.data import DataSplits, EvalLoader, TrainLoader, TrainViews, open_data
from anykd.data.cache import Cache
from anykd.data.views import height_width
from anykd.distributed import first_rank_first, rank, world_size
from anykd.engine import Trainer, choose_dtype
from anykd.errors import DataError, RecipeError
from anykd.methods import Method, MethodTable, build_methods, no_labels
from anykd.models import FrozenTeacher, StagedModel, create_staged, require_known
from anykd.models.recompute import recompute_blocks
from anykd.models.sharding import gathered
from anykd.recipe import Recipe

from .cache.use import with_caches
from .teachers import BuiltTeacher, Heads, build_teachers, compares

__all__ = ["Parts", "assemble", "eval_loader", "largest_size", "train_loader", "train_views"]


@dataclass(frozen=True)
class Parts:
    """What a run consists of.

    Attributes:
        built: The teachers, and how each comes by the data's classes.
        compared: The teachers whose class scores are compared with the student's.
        image_size: (height, width) of the images that the loaders give.
        stored: The cache of each teacher, None for one that runs; nothing where all of them do.
        on_bad_image: Called once with a line for each image that cannot be read; None is silent.
        bad_val_images: What was wrong with each held-out image that could not be read, by index;
            it grows when models are scored.
        teacher_choices: Which class the first teacher that knows the data's classes chooses for
            each held-out image of this rank, by index; found once, when models are scored.
    """

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype | None
    data: DataSplits
    student: StagedModel
    built: tuple[BuiltTeacher, ...]
    compared: tuple[FrozenTeacher, ...]
    method: Method
    image_size: tuple[int, int]
    loader: TrainLoader
    trainer: Trainer
    stored: tuple[Cache | None, ...] = ()
    on_bad_image: Callable[[str], None] | None = None
    bad_val_images: dict[int, str] = field(default_factory=dict)
    teacher_choices: dict[int, int] = field(default_factory=dict)

    @property
    def teachers(self) -> tuple[FrozenTeacher, ...]:
        """The teachers; none for a method that needs none."""
        return tuple(one.model for one in self.built)

    def gathered(self) -> AbstractContextManager[None]:
        """Put together for a while what is sharded, so that ranks need not run it in step."""
        average = () if self.trainer.ema is None else (self.trainer.ema.module,)
        return gathered(self.student, *average, *(teacher.model for teacher in self.teachers))


def assemble(
    recipe: Recipe,
    device: torch.device,
    heads: Heads | None = None,
    *,
    on_bad_image: Callable[[str], None] | None = None,
) -> Parts:
    """Make everything that a recipe names.

    Args:
        recipe: The experiment.
        device: Where models go.
        heads: Where new heads of teachers come from; None leaves those that are yet to be made
            random, which shows whether all fits and what it costs.
        on_bad_image: Called with a line for each image that cannot be read.

    Raises:
        AnykdError: If something cannot be had or does not fit.
    """
    with first_rank_first():  # it may download
        data = open_data(recipe.data)
    require_known(recipe.student.name)
    tables = tuple(_with_samples(table, len(data.train)) for table in recipe.method_tables)
    built = build_teachers(recipe, tables, data, device, heads)
    # Loading a teacher draws random numbers; the student must not depend on which teacher it is.
    torch.manual_seed(recipe.seed)
    student = _build_student(recipe, tables, data, _compared(built, tables))
    image_size = largest_size(student.image_size, *(one.model.image_size for one in built))
    views = train_views(recipe, data, image_size)
    built, stored = with_caches(recipe, built, views)
    teachers, compared = tuple(one.model for one in built), _compared(built, tables)
    if recipe.train.grad_checkpointing:
        recompute_blocks(student)
    torch.manual_seed(recipe.seed)
    weights = (config.weight for config in recipe.teachers)
    # Shorter where the control arm leaves the recipe's teachers alone.
    method = build_methods(tables, student, list(zip(teachers, weights, strict=False)))
    if data.train.labels is not None:
        method.know_labels(torch.tensor(data.train.labels))
    elif method.needs_labels:
        raise DataError(*no_labels(method))
    loader = train_loader(recipe, views, stored, device=device, on_bad_image=on_bad_image)
    trainer = Trainer(method, student, loader, recipe.train, device=device, seed=recipe.seed)
    for teacher, config in zip(teachers, recipe.teachers, strict=False):
        teacher.to(device, memory_format=trainer.layout)
        if config.fsdp:
            teacher.shard()
    dtype = choose_dtype(recipe.train.precision, device)
    models = (student, built, compared, method)
    loading = (image_size, loader, trainer, stored, on_bad_image)
    return Parts(recipe, device, dtype, data, *models, *loading)


def _compared(
    built: Sequence[BuiltTeacher], tables: Sequence[MethodTable]
) -> tuple[FrozenTeacher, ...]:
    """The teachers whose class scores a method reads."""
    return tuple(one.model for n, one in enumerate(built, start=1) if compares(tables, n))


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
        new_head=True,  # a student learns its classes; what was left out stands in its `loaded`
        **options,
        **config.build_options(),
    )


def largest_size(*sizes: int | tuple[int, int] | None) -> tuple[int, int]:
    """The largest of several models' (height, width), so that none sees more blur than it must.

    Args:
        sizes: In pixels; one number stands for both, and None for nothing.
    """
    given = [height_width(size) for size in sizes if size is not None]
    return max(pair[0] for pair in given), max(pair[1] for pair in given)


def train_views(recipe: Recipe, data: DataSplits, image_size: tuple[int, int]) -> TrainViews:
    """Make the views that training shows.

    Args:
        recipe: How images are varied.
        data: Where they are.
        image_size: (height, width) in pixels.
    """
    return TrainViews(
        data.train,
        num_classes=data.num_classes,
        image_size=image_size,
        augment=recipe.augment,
        label_smoothing=recipe.train.label_smoothing,
        seed=recipe.seed,
        bad_images=recipe.data.bad_images,
    )


def train_loader(
    recipe: Recipe,
    views: TrainViews,
    stored: Sequence[Cache | None] = (),
    *,
    device: torch.device,
    on_bad_image: Callable[[str], None] | None = None,
) -> TrainLoader:
    """Make the loader of this rank's share of the training images.

    Args:
        recipe: How they are loaded.
        views: How they are shown.
        stored: What each teacher said of them.
        device: Where they are trained on.
        on_bad_image: Called with a line for each image that cannot be read.

    Raises:
        AnykdError: If they do not fill a batch, or the ranks cannot share it evenly.
    """
    batch_size, ranks = recipe.train.batch_size, world_size()
    if batch_size % ranks:
        raise RecipeError(
            f"train.batch_size {batch_size} does not divide over {ranks} ranks",
            hint=f"choose a multiple of {ranks}",
        )
    return TrainLoader(
        views,
        batch_size=batch_size // ranks,
        seed=recipe.seed,
        rank=rank(),
        world_size=ranks,
        drop_last=recipe.data.drop_last,
        on_bad_image=on_bad_image,
        stored=stored,
        device=device,
        views_on=recipe.data.views_on,
        **_loading(recipe),
    )


def _loading(recipe: Recipe) -> dict[str, Any]:
    """What loaders of training images are told; what becomes of bad ones, their views know."""
    return {key: value for key, value in recipe.data.loading.items() if key != "bad_images"}


def eval_loader(
    data: DataSplits,
    recipe: Recipe,
    image_size: tuple[int, int],
    crop_pct: float | None = None,
    *,
    known_bad: dict[int, str] | None = None,
    on_bad_image: Callable[[str], None] | None = None,
) -> EvalLoader:
    """Make the loader of the held-out images, each once over all ranks.

    Args:
        data: Where they are.
        recipe: How they are cropped and loaded.
        image_size: (height, width) in pixels.
        crop_pct: Share of the short side to keep for a model of its own; None takes the recipe's.
        known_bad: Those that could not be read before, by index; new ones are added.
        on_bad_image: Called with a line for each new one.
    """
    augment = recipe.augment
    if crop_pct is not None:
        augment = augment.model_copy(update={"crop_pct": crop_pct})
    return EvalLoader(
        data.val,
        num_classes=data.num_classes,
        image_size=image_size,
        batch_size=min(recipe.train.batch_size, 256),
        augment=augment,
        rank=rank(),
        world_size=world_size(),
        known=known_bad,
        on_bad_image=on_bad_image,
        **recipe.data.loading,
    )
