"""How good a model or a finished run is, on any images with labels."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from anykd.analysis import Agreement, agreement, per_class_accuracy
from anykd.data import AugmentConfig, DataSplits, Split, open_split
from anykd.distributed import from_each_rank, rank
from anykd.engine import Scores, autocast, choose_dtype, evaluate, launched
from anykd.errors import DataError, ModelError, RecipeError
from anykd.models import FrozenTeacher, require_known
from anykd.progress import Progress
from anykd.recipe import ModelConfig, Recipe, TeacherConfig, apply_overrides, read_toml
from anykd.rundir import RunDir
from anykd.types import Batch

from .analysis.cost import image_cost
from .analysis.scores import calibration
from .assemble import eval_loader
from .teacher_classes import resolve_classes
from .teachers import load_with_weights

__all__ = ["Evaluation", "evaluate_model"]

_IMAGES = {"val": "held-out images", "train": "training images", "all": "images"}
_WORST = 5
"""Classes that are named, at most."""


@dataclass(frozen=True)
class Evaluation(Scores):
    """How good a model is.

    Attributes:
        ece: Expected calibration error, in [0, 1].
        reliability: Its bins, as of `anykd.analysis.reliability_curve`.
        per_class: Accuracy in each class, in percent; None for one without images.
        class_names: Of the classes.
        teacher: Whom the model was compared with, or None.
        agreement: Percent of images for which both choose the same class; None without a teacher.
        kl: Mean KL(teacher || model), in nats; None without a teacher.
        cost: Of one image: ``parameters``, ``flops``, ``latency_ms``, ``image_size``.
    """

    ece: float
    reliability: list[dict[str, Any]]
    per_class: tuple[float | None, ...]
    class_names: tuple[str, ...]
    teacher: str | None
    agreement: float | None
    kl: float | None
    cost: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in values that JSON has."""
        return asdict(self)

    def text(self) -> str:
        """The numbers in a few lines."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"top-1 {self.top1:.2f} %  top-5 {self.top5:.2f} %  "
            f"loss {self.loss:.4f}  {self.num_samples} images"
        )
        yield f"calibration error {self.ece:.4f} (ECE; 0 is right as often as it says)"
        if self.agreement is not None:
            yield f"agreement with {self.teacher} {self.agreement:.2f} %, KL {self.kl:.4f} nats"
        known = [(score, i) for i, score in enumerate(self.per_class) if score is not None]
        below = sorted((score, i) for score, i in known if score < self.top1)[:_WORST]
        if below:
            worst = ", ".join(f"{self.class_names[i]} {score:.1f} %" for score, i in below)
            yield f"worst classes: {worst}"
        height, width = self.cost["image_size"]
        gigaflop, millions = self.cost["flops"] / 1e9, self.cost["parameters"] / 1e6
        yield (
            f"one image of {height}x{width} px: {self.cost['latency_ms']:.2f} ms, "
            f"{gigaflop:.3g} GFLOP, {millions:.3g} M parameters"
        )


def evaluate_model(
    name: str,
    data: str | None,
    *,
    teacher: str | None = None,
    image_size: int | None = None,
    weights: str | None = None,
    split: str = "val",
    overrides: list[str],
) -> Evaluation:
    """Score a model or a finished run.

    A run is scored on its own data, split and crop, any other model with the crop and
    interpolation that it was made for, unless told otherwise. Where the data's classes are some of
    the model's, by name, it is scored among these alone.

    Args:
        name: A run directory, a timm architecture with pretrained weights, or ``hf-hub:NAME``.
        data: A data spec; None takes that of the run.
        teacher: Likewise a model, to be compared with. None takes the first teacher of a run where
            that is a run itself and knows the classes: nothing is downloaded for it.
        image_size: Pixels that the model sees; None takes its own.
        weights: A file of weights, instead of those that belong to the name.
        split: Which images: held out, trained on, or all.
        overrides: Single values of the recipe, such as ``data.val_fraction=0.4``; the model is its
            student.

    Raises:
        AnykdError: If model or data cannot be had, or they do not fit.
    """
    if split not in get_args(Split):
        raise RecipeError(f"--split {split} is none of {', '.join(get_args(Split))}")
    for model_name in (name, *([teacher] if teacher else [])):
        require_known(model_name)
    path = RunDir(name).recipe
    values = read_toml(path) if path.is_file() else {}
    own_teacher = _own_teacher(name, values)
    given = {"name": name, "image_size": image_size, "weights": weights}
    values["student"] = {key: value for key, value in given.items() if value is not None}
    if data is not None:
        # A run without labels says nothing of other data: these have some, or cannot be scored by.
        values["data"] = values.get("data", {}) | {"source": data, "labels": True}
    augment = values.get("augment")
    values = apply_overrides(values, overrides)
    if "data" not in values:
        raise RecipeError("no data is given", hint="give --data SPEC")
    recipe = Recipe.from_dict(values)
    splits = open_split(recipe.data, cast("Split", split))
    if splits.val.labels is None:
        raise DataError(
            f"the {_IMAGES[split]} of {splits.name} have no labels to be scored by",
            hint="give --data SPEC with labels",
        )
    with launched() as device:
        model, crop_pct = _load(recipe.student, recipe.data.source, splits), recipe.student.crop_pct
        other = _load_teacher(teacher, own_teacher, recipe.data.source, splits)
        if augment is None:  # no run's
            own = {"crop_pct": model.model.crop_pct, "interpolation": model.model.interpolation}
            told = values.get("augment", {})
            augment = AugmentConfig(**own | told)
            recipe = recipe.model_copy(update={"augment": augment})
        progress = Progress(visible=rank() == 0)
        loader = eval_loader(splits, recipe, model.image_size, crop_pct, on_bad_image=progress.say)
        dtype = choose_dtype(recipe.train.precision, device)
        model.to(device)
        answers = _Answers(_taught(other, splits, recipe, device, dtype))
        scores = evaluate(
            lambda images: model(images).logits,
            loader,
            device=device,
            dtype=dtype,
            see=answers.keep,
        )
        for found in from_each_rank(loader.bad_images):
            loader.add_bad_images(found)
        return Evaluation(
            **asdict(scores),
            **answers.described(splits.num_classes),
            class_names=splits.class_names,
            teacher=None if other is None else teacher or own_teacher,
            cost=image_cost(model.model, device, dtype),
        )


def _taught(
    teacher: FrozenTeacher | None,
    splits: DataSplits,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[Tensor] | None:
    """What a teacher makes of the same images, batch by batch: it sees them its own way."""
    if teacher is None:
        return None
    teacher.to(device)
    loader = eval_loader(splits, recipe, teacher.image_size)

    def run(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            return teacher(images.to(device)).logits

    return (run(batch.images) for batch in loader)


class _Answers:
    """What a model says of each image, and how far a teacher says the same.

    Args:
        taught: The teacher's class scores of each batch, or None.
    """

    def __init__(self, taught: Iterator[Tensor] | None) -> None:
        self._taught = taught
        self._labels: list[Tensor] = []
        self._chosen: list[Tensor] = []
        self._confidences: list[Tensor] = []
        self._agreements: list[Agreement] = []

    def keep(self, batch: Batch, logits: Float[Tensor, "batch classes"]) -> None:
        """Keep what the model says of the next batch."""
        assert batch.labels is not None
        confidences, chosen = logits.float().softmax(dim=1).max(dim=1)
        self._labels.append(batch.labels.argmax(dim=1).cpu())
        self._confidences.append(confidences.cpu())
        self._chosen.append(chosen.cpu())
        if self._taught is not None:
            self._agreements.append(agreement(logits, next(self._taught)))

    def described(self, num_classes: int) -> dict[str, Any]:
        """What was found beside the scores; all ranks call it together."""
        kept = (self._labels, self._chosen, self._confidences)
        parts = [part for rank in from_each_rank(kept) for part in zip(*rank, strict=True)]
        labels, chosen, confidences = map(torch.cat, zip(*parts, strict=True))
        agreements = [one for rank in from_each_rank(self._agreements) for one in rank]
        sizes = [len(labels) for labels, _, _ in parts]
        return {
            **calibration(confidences, chosen == labels),
            "per_class": per_class_accuracy(chosen, labels, num_classes),
            "agreement": _mean([one.top1 for one in agreements], sizes),
            "kl": _mean([one.kl for one in agreements], sizes),
        }


def _mean(values: list[float], sizes: list[int]) -> float | None:
    """Mean over images of means over batches."""
    if not values:
        return None
    return sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)


def _own_teacher(name: str, values: dict[str, Any]) -> str | None:
    """The first teacher of a run, where it is a finished run itself."""
    trained = RunDir(name).teacher(1)
    if trained.finished:
        return str(trained.path)
    teachers = values.get("teacher") or []
    first = teachers[0] if isinstance(teachers, list) and teachers else teachers
    if not isinstance(first, dict) or "head" in first or not RunDir(first["name"]).finished:
        return None
    return first["name"]


def _load_teacher(
    asked: str | None, own: str | None, spec: str, splits: DataSplits
) -> FrozenTeacher | None:
    """The model to compare with; a run's own is left out where it does not fit."""
    if asked is not None:
        return _load(TeacherConfig(name=asked), spec, splits)
    if own is None:
        return None
    try:
        return _load(TeacherConfig(name=own), spec, splits)
    except ModelError:
        return None


def _load(config: ModelConfig | TeacherConfig, spec: str, splits: DataSplits) -> FrozenTeacher:
    """A model with the data's classes."""
    model = load_with_weights(config, None, splits.num_classes)
    if not model.num_classes:
        raise ModelError(
            f"{config.name} has no classifier to be scored",
            hint=f"train one on its features: anykd train --model {config.name} --data SPEC",
        )
    start = f"weights={config.weights}" if config.weights else "pretrained=true"
    flag = "" if Path(config.name).is_dir() else f" --set student.{start}"
    hint = f"train it for these: anykd train --model {config.name} --data {spec}{flag}"
    classes = resolve_classes(model, splits, name=config.name, hint=hint)
    return FrozenTeacher(model, classes.chosen)
