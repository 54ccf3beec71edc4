"""Accuracy on the held-out images: of a run's models while it trains, or of any model."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anykd.data import open_data
from anykd.engine import Scores, autocast, choose_dtype, evaluate, launched
from anykd.errors import DataError, ModelError, RecipeError
from anykd.methods import Classifier
from anykd.models import FrozenTeacher, StagedModel, require_known
from anykd.recipe import Recipe, TeacherConfig, apply_overrides, read_toml
from anykd.rundir import RunDir
from anykd.types import Batch

from .assemble import Parts, build_teacher, eval_loader, require_classes

__all__ = [
    "class_names",
    "evaluate_model",
    "kept_student",
    "measure",
    "score_run",
    "score_teachers",
]


def _logits(
    model: StagedModel | FrozenTeacher, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch classes"]:
    return model(images).logits


def measure(parts: Parts) -> str | None:
    """What a run's models are scored by on held-out images.

    Returns:
        ``top1`` where these have labels; else ``agreement``, the percentage for which model and
        teacher choose the same class; None where there is neither, or no term trained the student's
        classifier.
    """
    if not parts.method.trains_logits:
        return None
    if parts.data.val.labels is not None:
        return "top1"
    return "agreement" if parts.compared else None


def _score(parts: Parts, classify: Classifier, image_size: tuple[int, int]) -> Scores:
    if parts.data.val.labels is not None:
        batches = eval_loader(parts.data, parts.recipe, image_size)
    else:
        # One loader for both models, so that they see the same images.
        batches = _labelled_by(parts, eval_loader(parts.data, parts.recipe, parts.image_size))
    return evaluate(classify, batches, device=parts.device, dtype=parts.dtype)


def _labelled_by(parts: Parts, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Give images without labels the classes that the teacher, of several the first, chooses."""
    teacher = parts.compared[0]
    for batch in batches:
        batch = batch.to(parts.device)
        with autocast(parts.device, parts.dtype):
            logits = teacher(batch.images).logits
        labels = F.one_hot(logits.argmax(dim=1), teacher.num_classes).float()
        yield Batch(batch.images, labels, batch.indices)


def kept_student(parts: Parts) -> StagedModel:
    """The student that is scored and saved: the average of its weights where one is kept."""
    ema = parts.trainer.ema
    return parts.student if ema is None else ema.module


def score_teachers(parts: Parts) -> list[dict[str, Any]]:
    """Name each teacher, and score those that know the classes of labelled held-out images."""
    return [
        {"name": teacher.name, "source": config.name}
        | (
            asdict(_score(parts, partial(_logits, teacher), teacher.image_size))
            if parts.data.val.labels is not None and teacher.num_classes == parts.data.num_classes
            else {}
        )
        # The control arm leaves the recipe's teachers alone.
        for teacher, config in zip(parts.teachers, parts.recipe.teachers, strict=False)
    ]


def class_names(parts: Parts) -> tuple[str, ...]:
    """What the student's logits stand for: the data's classes, or those of its teacher's run."""
    if parts.data.class_names or not parts.compared:
        return parts.data.class_names
    saved = getattr(parts.compared[0].model.model, "pretrained_cfg", None) or {}
    return tuple(saved.get("label_names") or ())


def score_run(parts: Parts) -> dict[str, Any]:
    """Score the student and what the method trains beside it.

    Returns:
        The fields of `Scores`; ``raw_top1`` of the student's last weights where an average is
        kept; ``NAME_top1`` of each companion. For images without labels ``agreement`` with the
        teacher stands for ``top1``, and nothing is found where class scores are not compared.
    """
    by = measure(parts)
    if by is None:
        return {}
    parts.method.eval()
    # Each model is scored on images of its own size, as whoever uses it will load them.
    kept, size = kept_student(parts), parts.student.image_size
    scores = _score(parts, partial(_logits, kept), size)
    found = asdict(scores)
    if by == "agreement":
        found = {by: scores.top1, "num_samples": scores.num_samples}
    if kept is not parts.student:
        found[f"raw_{by}"] = _score(parts, partial(_logits, parts.student), size).top1
    for name, classify in parts.method.companions().items():
        found[f"{name}_{by}"] = _score(parts, classify, parts.image_size).top1
    return found


def evaluate_model(
    name: str, data: str | None, *, image_size: int | None = None, overrides: list[str]
) -> Scores:
    """Score a model or a finished run on held-out images.

    A run is scored on its own data, split and crop, unless told otherwise.

    Args:
        name: A run directory, a timm architecture with pretrained weights, or ``hf-hub:NAME``.
        data: A data spec; None takes that of the run.
        image_size: Pixels that the model sees; None takes its own.
        overrides: Single values of the recipe, such as ``data.val_fraction=0.4``.

    Raises:
        AnykdError: If model or data cannot be had, or they do not fit.
    """
    require_known(name)
    path = RunDir(name).recipe
    values = read_toml(path) if path.is_file() else {"student": {"name": name}}
    if data is not None:
        # A run without labels says nothing of other data: these have some, or cannot be scored by.
        values["data"] = values.get("data", {}) | {"source": data, "labels": True}
    values = apply_overrides(values, overrides)
    if "data" not in values:
        raise RecipeError("no data is given", hint="give --data SPEC")
    recipe = Recipe.from_dict(values)
    splits = open_data(recipe.data)
    if splits.val.labels is None:
        raise DataError(
            f"the held-out images of {splits.name} have no labels to be scored by",
            hint="give --data SPEC with labels",
        )
    with launched() as device:
        config = TeacherConfig(name=name, image_size=image_size)
        model = build_teacher(config, None, splits)
        if not model.num_classes:
            raise ModelError(
                f"{name} has no classifier to be scored",
                hint=f"train one on its features: anykd train --model {name} --data SPEC",
            )
        require_classes(model, config, splits)
        model.to(device)
        loader = eval_loader(splits, recipe, model.image_size)
        dtype = choose_dtype(recipe.train.precision, device)
        return evaluate(partial(_logits, model), loader, device=device, dtype=dtype)
