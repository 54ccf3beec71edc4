"""Accuracy on the held-out images: of a run's models while it trains, or of any model."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anykd.data import EvalLoader
from anykd.distributed import from_each_rank
from anykd.engine import Scores, autocast, evaluate
from anykd.methods import Classifier
from anykd.models import FrozenTeacher, StagedModel
from anykd.models.classes import class_names_of
from anykd.types import Batch

from .assemble import Parts, eval_loader

__all__ = [
    "class_names",
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


def _score(
    parts: Parts,
    classify: Classifier,
    image_size: tuple[int, int],
    crop_pct: float | None = None,
) -> Scores:
    labelled = parts.data.val.labels is not None
    loader = eval_loader(
        parts.data,
        parts.recipe,
        # Without labels one loader for both models, so that they see the same images.
        image_size if labelled else parts.image_size,
        crop_pct,
        known_bad=parts.bad_val_images,
        on_bad_image=parts.on_bad_image,
    )
    batches = loader if labelled else _labelled_by(parts, loader)
    with parts.gathered():  # ranks may have different numbers of batches
        scores = evaluate(classify, batches, device=parts.device, dtype=parts.dtype)
    _exchange_bad_images(loader)
    return scores


def _exchange_bad_images(loader: EvalLoader) -> None:
    """Let all ranks know what each of them could not read, and stop alike where it is too much."""
    for found in from_each_rank(loader.bad_images):
        loader.add_bad_images(found)


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
    found = []
    # The control arm leaves the recipe's teachers alone.
    for built, config in zip(parts.built, parts.recipe.teachers, strict=False):
        teacher, head = built.model, built.classes.head
        said: dict[str, Any] = {"name": teacher.name, "source": config.name}
        said |= {"classes": built.classes.kind}
        if head is not None:
            said |= {"head": asdict(head)}
        if config.cache is not None:
            said |= {"cache": config.cache}
        known = built.has_learnt and teacher.num_classes == parts.data.num_classes
        if known and parts.data.val.labels is not None:
            classify = partial(_logits, teacher)
            said |= asdict(_score(parts, classify, teacher.image_size, config.crop_pct))
        found.append(said)
    return found


def class_names(parts: Parts) -> tuple[str, ...]:
    """What the student's logits stand for: the data's classes, or those of its teacher's run."""
    if parts.data.class_names or not parts.compared:
        return parts.data.class_names
    return tuple(spellings[0] for spellings in class_names_of(parts.compared[0].model))


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
    crop = parts.recipe.student.crop_pct
    scores = _score(parts, partial(_logits, kept), size, crop)
    found = asdict(scores)
    if by == "agreement":
        found = {by: scores.top1, "num_samples": scores.num_samples}
    if kept is not parts.student:
        found[f"raw_{by}"] = _score(parts, partial(_logits, parts.student), size, crop).top1
    for name, classify in parts.method.companions().items():
        found[f"{name}_{by}"] = _score(parts, classify, parts.image_size, crop).top1
    return found
