"""All findings of a run."""

from collections.abc import Iterator
from pathlib import Path

from anykd.experiment.assemble import Parts
from anykd.recipe import TeacherConfig

from .finding import Finding
from .findings import data as of_data
from .findings import teacher as of_teacher
from .findings import training as of_training
from .judge import Judge, sample_size
from .models import ModelFacts, is_pretrained
from .normalisation import COMMON
from .sample import Look, likely_copies, look_at

__all__ = ["check"]

_ORDER = ("error", "warning", "note")
_NEW_HEADS = ("probe", "finetuned")
_VAL_IMAGES = 128
_TRAIN_FILES = 256
_TRAIN_IN_MEMORY = 10_000


def check(parts: Parts, models: tuple[ModelFacts, ...]) -> tuple[Finding, ...]:
    """Look for everything that may be amiss, in some seconds and without leaving a trace.

    Args:
        parts: The run.
        models: Its student and teachers, described.

    Returns:
        Errors, then warnings, then notes.
    """
    train = parts.data.train
    held_out = look_at(parts.data.val, _VAL_IMAGES)
    copies = likely_copies(train, parts.data.val, held_out.positions, most=_TRAIN_FILES)
    count = _TRAIN_IN_MEMORY if train.in_memory else _TRAIN_FILES
    seen = look_at(train, count, also=copies)
    found = [
        *_of_data(parts, models, seen, held_out),
        *_of_training(parts),
        *_of_teachers(parts, models, held_out),
    ]
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.severity)))


def _of_data(
    parts: Parts, models: tuple[ModelFacts, ...], train: Look, val: Look
) -> Iterator[Finding]:
    data = parts.data
    yield from of_data.unreadable_images(train, val, parts.recipe.data)
    yield from of_data.labels_out_of_range(data)
    yield from of_data.missing_classes(data)
    yield from of_data.class_imbalance(data)
    yield from of_data.overlap(train, val)
    yield from of_data.enlarged_images(train, {model.role: model.image_size for model in models})
    yield from of_data.cropped_borders(val, parts.recipe.augment)


def _of_training(parts: Parts) -> Iterator[Finding]:
    config = parts.recipe.train
    steps = parts.trainer.loader.steps_per_epoch * config.epochs
    yield from of_training.slow_average(config, num_steps=steps)
    yield from of_training.small_batch(parts.method, config.batch_size // config.grad_accum)
    yield from of_training.batch_in_parts(parts.method, config)
    yield from of_training.untrained_classifier(parts.method)
    yield from of_training.rising_learning_rate(config)


def _of_teachers(parts: Parts, models: tuple[ModelFacts, ...], held_out: Look) -> Iterator[Finding]:
    student, *teachers = models
    if teachers:
        largest = max(teacher.parameters for teacher in teachers)
        yield from of_teacher.larger_student(student.parameters, largest)
    for built, facts in zip(parts.built, teachers, strict=True):
        yield from of_teacher.doubtful_classes(built.classes)
        if built.model in parts.compared and built.classes.kind not in _NEW_HEADS:
            yield from of_teacher.random_classifier(facts.source, built.model.model.loaded)
    yield from _of_scores(parts, models, held_out)


def _of_scores(parts: Parts, models: tuple[ModelFacts, ...], held_out: Look) -> Iterator[Finding]:
    """What the teachers' answers on held-out images tell."""
    data = parts.data
    scored = [
        (built.model, facts, config)
        for built, facts, config in zip(
            parts.built, models[1:], parts.recipe.teachers[: len(parts.built)], strict=True
        )
        if built.model.num_classes == data.num_classes and built.has_learnt
    ]
    labels = data.val.labels
    known = labels is not None and all(0 <= label < data.num_classes for label in labels)
    if not known or not scored or not held_out.positions:
        return
    slowest = max(facts.flops for _, facts, _ in scored)
    judge = Judge(parts, held_out.positions[: sample_size(slowest, parts.device)])
    for teacher, facts, config in scored:
        crop, of_a_run = config.crop_pct, _is_as_trained(config)
        own = judge.hits(teacher, crop_pct=crop)
        if judge.num_broken:
            yield from of_teacher.broken_scores(facts.source, judge.num_broken, len(own))
            continue
        misread: list[Finding] = []
        if own.float().mean() <= 1 - of_teacher.JUMP and not of_a_run:
            others = {other: judge.hits(teacher, crop_pct=crop, seen_as=other) for other in COMMON}
            misread += of_teacher.wrong_normalisation(facts.source, own, others)
        # A teacher that sees the images wrongly knows more than it shows.
        yield from misread or of_teacher.near_chance(
            facts.source, own, data.num_classes, of_a_run=of_a_run
        )
        if is_pretrained(parts.recipe.student) and parts.student.num_classes == data.num_classes:
            students = judge.hits(parts.student, crop_pct=parts.recipe.student.crop_pct)
            yield from of_teacher.wiser_student(facts.source, own, students)


def _is_as_trained(config: TeacherConfig) -> bool:
    """Whether a teacher is one of our own, and seen as it was trained: its run kept how."""
    ours = Path(config.name).is_dir() or config.head == "finetune"
    return ours and config.weights is None and config.mean is None and config.std is None
