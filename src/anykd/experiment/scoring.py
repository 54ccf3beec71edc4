"""Accuracy on the held-out images: of a run's models while it trains, or of any model."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anykd.data import EvalLoader
from anykd.distributed import from_each_rank, sum_over_ranks
from anykd.engine import Scores, autocast, evaluate
from anykd.methods import Classifier
from anykd.models import FrozenTeacher, StagedModel
from anykd.models.classes import class_names_of
from anykd.types import Batch

from .assemble import Parts, eval_loader
from .teachers import BuiltTeacher

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
    *,
    chosen: dict[int, int] | None = None,
) -> Scores:
    """Score a model on held-out images; which class it chooses for each is put into ``chosen``."""
    loader = _held_out(parts, image_size, crop_pct)
    labelled = parts.data.val.labels is not None
    batches = loader if labelled else _labelled_by(parts, loader)
    with parts.gathered():  # ranks may have different numbers of batches
        scores = evaluate(
            classify,
            batches,
            device=parts.device,
            dtype=parts.dtype,
            see=partial(_keep_choices, {} if chosen is None else chosen),
        )
    _exchange_bad_images(loader)
    return scores


def _held_out(parts: Parts, image_size: tuple[int, int], crop_pct: float | None) -> EvalLoader:
    return eval_loader(
        parts.data,
        parts.recipe,
        # Without labels one loader for both models, so that they see the same images.
        parts.image_size if parts.data.val.labels is None else image_size,
        crop_pct,
        known_bad=parts.bad_val_images,
        on_bad_image=parts.on_bad_image,
    )


def _keep_choices(chosen: dict[int, int], batch: Batch, logits: Tensor) -> None:
    assert batch.indices is not None
    chosen.update(zip(batch.indices.tolist(), logits.argmax(dim=1).tolist(), strict=True))


def _exchange_bad_images(loader: EvalLoader) -> None:
    """Let all ranks know what each of them could not read, and stop alike where it is too much."""
    for found in from_each_rank(loader.bad_images):
        loader.add_bad_images(found)


def _labelled_by(parts: Parts, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Give images without labels the classes that the teacher, of several the first, chooses."""
    choices, num_classes = parts.teacher_choices, parts.compared[0].num_classes
    for batch in batches:
        assert batch.indices is not None
        indices = batch.indices.tolist()
        # An image that could not be read when the teacher saw it may be readable again.
        seen = [place for place, index in enumerate(indices) if index in choices]
        if seen:
            batch = batch.rows(torch.tensor(seen))
            classes = torch.tensor([choices[indices[place]] for place in seen])
            yield Batch(batch.images, F.one_hot(classes, num_classes).float(), batch.indices)


def _know_teacher_choices(parts: Parts) -> bool:
    """Let the first teacher that knows the data's classes choose one for each held-out image.

    Where `score_teachers` has run it on labelled images, its choices are there already.

    Returns:
        Whether there is such a teacher.
    """
    labelled = parts.data.val.labels is not None
    if labelled:
        known = [one.model for one in parts.built if _knows_classes(parts, one)]
    else:
        known = list(parts.compared)
    if not known or parts.teacher_choices:
        return bool(known)
    teacher = known[0]
    number = parts.teachers.index(teacher)
    crop_pct = parts.recipe.teachers[number].crop_pct if labelled else None
    loader = _held_out(parts, teacher.image_size, crop_pct)
    with parts.gathered():
        for batch in loader:
            batch = batch.to(parts.device)
            with autocast(parts.device, parts.dtype):
                _keep_choices(parts.teacher_choices, batch, teacher(batch.images).logits)
    _exchange_bad_images(loader)
    return True


def _knows_classes(parts: Parts, built: BuiltTeacher) -> bool:
    return built.has_learnt and built.model.num_classes == parts.data.num_classes


def _agreement(parts: Parts, chosen: dict[int, int]) -> dict[str, float]:
    """Percent of the held-out images for which student and teacher choose the same class."""
    both = chosen.keys() & parts.teacher_choices.keys()
    same = sum(chosen[index] == parts.teacher_choices[index] for index in both)
    counts = torch.tensor([same, len(both)], dtype=torch.float64, device=parts.device)
    same, count = sum_over_ranks(counts).tolist()
    return {"agreement": 100 * same / count} if count else {}


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
        if _knows_classes(parts, built) and parts.data.val.labels is not None:
            classify = partial(_logits, teacher)
            chosen: dict[int, int] = {}
            scores = _score(parts, classify, teacher.image_size, config.crop_pct, chosen=chosen)
            said |= asdict(scores)
            if not parts.teacher_choices:
                parts.teacher_choices.update(chosen)
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
        The fields of `Scores`; ``agreement``, the percentage of images for which the student and
        the first teacher that knows the classes choose the same one; ``raw_top1`` of the student's
        last weights where an average is kept; ``NAME_top1`` of each companion. For images without
        labels ``agreement`` stands for ``top1``, and nothing is found where class scores are not
        compared.
    """
    by = measure(parts)
    if by is None:
        return {}
    parts.method.eval()
    has_teacher, chosen = _know_teacher_choices(parts), dict[int, int]()
    # Each model is scored on images of its own size, as whoever uses it will load them.
    kept, size = kept_student(parts), parts.student.image_size
    crop = parts.recipe.student.crop_pct
    scores = _score(parts, partial(_logits, kept), size, crop, chosen=chosen)
    found = asdict(scores)
    if has_teacher:
        found |= _agreement(parts, chosen)
    if by == "agreement":
        found = {by: scores.top1, "num_samples": scores.num_samples}
    if kept is not parts.student:
        found[f"raw_{by}"] = _score(parts, partial(_logits, parts.student), size, crop).top1
    for name, classify in parts.method.companions().items():
        found[f"{name}_{by}"] = _score(parts, classify, parts.image_size, crop).top1
    return found
