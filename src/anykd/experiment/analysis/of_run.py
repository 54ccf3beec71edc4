"""The analysis of a run: its student against its teachers, before training and after."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from anykd.analysis import agreement, confusion_counts
from anykd.data import Reader
from anykd.distributed import rank, wait_for_all, world_size
from anykd.errors import first_line
from anykd.experiment.assemble import Parts
from anykd.experiment.scoring import class_names, kept_student, measure
from anykd.files import json_text
from anykd.progress import Progress
from anykd.rundir import RunDir, write_atomically

from .collect import CKA_SAMPLES, LAYERS, Collected, Subject, collect
from .cost import image_cost
from .examples import choose_examples, write_examples
from .images import ModelView, Shown
from .scores import score

__all__ = ["analyze_after", "analyze_before"]

Values = dict[str, Any]

_PAIRS = 20_000
"""Entries of the confusion that are kept."""


def analyze_before(parts: Parts, directory: RunDir, progress: Progress) -> None:
    """Compare the features of the student that nothing has taught with the teachers'.

    All ranks call it together, and nothing of the run changes. A failure is said, not raised: no
    run is to be lost to it.

    Args:
        parts: The run.
        directory: Where the result is written, for `analyze_after`.
        progress: What a person sees of it.
    """
    if not parts.built:
        return

    def analyze() -> None:
        found = _collect(parts, min(parts.recipe.analysis.num_samples, CKA_SAMPLES))
        directory.write_json(_before(directory.analysis.parent), _matrices(found))

    _on_first_rank(analyze, parts, progress, then="the run goes on without it")


def analyze_after(parts: Parts, directory: RunDir, progress: Progress) -> None:
    """Compare the trained student with its teachers, and write ``RUN/analysis/``.

    All ranks call it together, and nothing of the run changes. A failure is said, not raised.

    Args:
        parts: The run, at its end.
        directory: Where the result is written.
        progress: What a person sees of it.
    """

    def analyze() -> None:
        found = _collect(parts, parts.recipe.analysis.num_samples)
        before = _read_before(directory)
        values = _described(parts, found) | {"cka": _cka(found, before)}
        save = partial(_write, values=values, before=before, reader=parts.data.val)
        write_atomically(directory.analysis.parent, save)

    _on_first_rank(analyze, parts, progress, then="the run is complete without it")


def _on_first_rank(
    analyze: Callable[[], None], parts: Parts, progress: Progress, *, then: str
) -> None:
    """Let the first rank analyse while the others wait: that takes seconds."""
    if not parts.recipe.analysis.num_samples or not len(parts.data.val):
        return
    with parts.gathered():
        if rank() == 0:
            try:
                analyze()
            except Exception as error:  # whatever an odd model raises, the run is what counts
                progress.say(
                    f"the analysis failed ({type(error).__name__}: {first_line(error)}); {then}"
                )
        wait_for_all()


def _collect(parts: Parts, num_samples: int) -> Collected:
    subjects = _subjects(parts)
    shown = Shown(parts.data, parts.recipe, num_samples)
    views = [subject.view for subject in subjects]
    batches = shown.batches(views, batch_size=shown.batch_size(world_size()))
    return collect(subjects, batches, device=parts.device, dtype=parts.dtype)


def _subjects(parts: Parts) -> list[Subject]:
    """The student, and behind it the teachers."""
    student, labelled = kept_student(parts), parts.data.val.labels is not None
    num_classes = parts.data.num_classes if labelled else student.num_classes
    # Without labels all see images of one size, as where the run is scored.
    size = None if labelled else parts.image_size
    view = ModelView(size or student.image_size, parts.recipe.student.crop_pct)
    knows = measure(parts) is not None and 0 < student.num_classes == num_classes
    found = [Subject(student, student, view, knows)]
    # The control arm leaves the recipe's teachers alone.
    for built, config in zip(parts.built, parts.recipe.teachers, strict=False):
        teacher = built.model
        view = ModelView(size or teacher.image_size, config.crop_pct if labelled else None)
        knows = built.has_learnt and 0 < teacher.num_classes == num_classes
        found.append(Subject(teacher.model, teacher, view, knows))
    return found


def _described(parts: Parts, found: Collected) -> Values:
    """Everything but the CKA."""
    shown = Shown(parts.data, parts.recipe, parts.recipe.analysis.num_samples)
    positions = [shown.positions[index] for index in found.indices.tolist()]
    student, *teachers = _subjects(parts)
    own, *others = found.logits
    models = [
        {"name": subject.model.name, **score(logits, found.labels), "effective_rank": ranks}
        for subject, logits, ranks in zip(
            (student, *teachers), found.logits, found.ranks, strict=True
        )
    ]
    configs = parts.recipe.teachers
    for model, config, logits in zip(models[1:], configs, others, strict=False):
        model |= {"source": config.name, "agreement": _agreement(own, logits)}
    return {
        "num_samples": len(found.indices),
        "classes": list(class_names(parts)),
        "student": models[0],
        "teachers": models[1:],
        "confusion": _confusion(own, found.labels),
        "examples": _examples(parts, found, positions),
        "cost": {
            "student": image_cost(student.model, parts.device, parts.dtype),
            "teachers": [image_cost(one.model, parts.device, parts.dtype) for one in teachers],
        },
    }


def _agreement(student: Tensor | None, teacher: Tensor | None) -> Values | None:
    if student is None or teacher is None:
        return None
    found = agreement(student, teacher)
    return {"top1": found.top1, "kl": found.kl, "per_class": list(found.per_class)}


def _confusion(logits: Tensor | None, labels: Tensor | None) -> list[list[int]] | None:
    if logits is None or labels is None:
        return None
    return confusion_counts(logits.argmax(dim=1), labels)[:_PAIRS].tolist()


def _examples(parts: Parts, found: Collected, positions: list[int]) -> list[Values]:
    """Of the first teacher whose class scores mean something."""
    student, *teachers = found.logits
    teacher = next((logits for logits in teachers if logits is not None), None)
    if student is None or teacher is None:
        return []
    limit = parts.recipe.analysis.num_examples
    return choose_examples(student, teacher, found.labels, positions, limit=limit)


def _matrices(found: Collected) -> Values:
    """The CKA with each teacher, by its number from 0."""
    return {
        str(number): [[round(value, 6) for value in row] for row in matrix.tolist()]
        for number, matrix in enumerate(found.cka)
        if matrix is not None
    }


def _cka(found: Collected, before: Values) -> list[Values]:
    """One entry for each teacher of which features could be compared."""
    return [
        {
            "teacher": int(number),
            "num_samples": found.cka_samples,
            "student_layers": list(LAYERS),
            "teacher_layers": list(LAYERS),
            "before": before.get(number),
            "after": after,
        }
        for number, after in _matrices(found).items()
    ]


def _write(folder: Path, values: Values, before: Values, reader: Reader) -> None:
    """Write the whole folder, with what a run that goes on once more needs of the one before."""
    folder.mkdir()
    write_examples(folder / "examples", values["examples"], reader)
    for path, content in ((folder / "analysis.json", values), (_before(folder), before)):
        if content:
            path.write_text(json_text(content) + "\n")


def _before(folder: Path) -> Path:
    return folder / "before.json"


def _read_before(directory: RunDir) -> Values:
    path = _before(directory.analysis.parent)
    return directory.read_json(path) if path.is_file() else {}
