"""Accuracy on the held-out images: of a run's models while it trains, or of any model."""

from dataclasses import asdict
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anykd.data import open_data
from anykd.engine import Scores, choose_dtype, evaluate, launched
from anykd.errors import RecipeError
from anykd.methods import Classifier
from anykd.models import FrozenTeacher, StagedModel, require_known
from anykd.recipe import Recipe, TeacherConfig, apply_overrides, read_toml
from anykd.rundir import RunDir

from .assemble import Parts, build_teacher, eval_loader

__all__ = ["evaluate_model", "kept_student", "score_run", "score_teacher"]


def _logits(
    model: StagedModel | FrozenTeacher, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch classes"]:
    return model(images).logits


def _score(parts: Parts, classify: Classifier, image_size: tuple[int, int]) -> Scores:
    loader = eval_loader(parts.data, parts.recipe, image_size)
    return evaluate(classify, loader, device=parts.device, dtype=parts.dtype)


def kept_student(parts: Parts) -> StagedModel:
    """The student that is scored and saved: the average of its weights where one is kept."""
    ema = parts.trainer.ema
    return parts.student if ema is None else ema.module


def score_teacher(parts: Parts) -> dict[str, Any] | None:
    """Score the teacher, where there is one."""
    teacher = parts.teacher
    if teacher is None:
        return None
    return {"name": teacher.name} | asdict(
        _score(parts, partial(_logits, teacher), teacher.image_size)
    )


def score_run(parts: Parts) -> dict[str, Any]:
    """Score the student and what the method trains beside it.

    Returns:
        The fields of `Scores`; ``raw_top1`` of the student's last weights where an average is
        kept; ``NAME_top1`` of each companion.
    """
    parts.method.eval()
    # Each model is scored on images of its own size, as whoever uses it will load them.
    kept, size = kept_student(parts), parts.student.image_size
    found = asdict(_score(parts, partial(_logits, kept), size))
    if kept is not parts.student:
        found["raw_top1"] = _score(parts, partial(_logits, parts.student), size).top1
    for name, classify in parts.method.companions().items():
        found[f"{name}_top1"] = _score(parts, classify, parts.image_size).top1
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
        values["data"] = values.get("data", {}) | {"source": data}
    values = apply_overrides(values, overrides)
    if "data" not in values:
        raise RecipeError("no data is given", hint="give --data SPEC")
    recipe = Recipe.from_dict(values)
    splits = open_data(recipe.data)
    with launched() as device:
        model = build_teacher(TeacherConfig(name=name, image_size=image_size), None, splits)
        model.to(device)
        loader = eval_loader(splits, recipe, model.image_size)
        dtype = choose_dtype(recipe.train.precision, device)
        return evaluate(partial(_logits, model), loader, device=device, dtype=dtype)
