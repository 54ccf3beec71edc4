"""Images on which student and teacher disagree, put into the page."""

import base64
from dataclasses import dataclass
from typing import Any

from .arms import Arm, Experiment

__all__ = ["Example", "Examples", "disagreements"]

_BYTES = 900_000
"""Of all images of a page as text: it stays small enough to be sent by mail."""


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        source: A data URI.
        alt: What it is.
        index: Of its class; None without labels.
        label: Name of its class; empty without labels.
        student: What the student takes it for, and how sure it is.
        teacher: What the teacher takes it for.
        right: Who is right: ``student``, ``teacher``, ``neither``, or empty without labels.
    """

    source: str
    alt: str
    index: int | None
    label: str
    student: str
    teacher: str
    right: str


@dataclass(frozen=True)
class Examples:
    """The images of one arm.

    Attributes:
        arm: Whose student it is.
        seed: Of the run.
        images: At least one.
        of: How many images were looked at.
    """

    arm: Arm
    seed: int
    images: tuple[Example, ...]
    of: int


class Budget:
    """How much of the page images may still fill.

    Args:
        left: Characters.
    """

    def __init__(self, left: int = _BYTES) -> None:
        self.left = left

    def take(self, length: int) -> bool:
        """Whether there is room for so many characters, which is then taken."""
        if length > self.left:
            return False
        self.left -= length
        return True


def disagreements(experiment: Experiment, budget: Budget) -> list[Examples]:
    """The images that the arms' first analysed runs kept, the best arm's first."""
    found = []
    for arm in sorted(experiment.arms, key=lambda arm: arm.is_control):
        run = arm.analysed
        if run is None:
            continue
        names = run.analysis.get("classes") or []
        folder = run.path / "analysis"
        images = []
        for entry in run.analysis.get("examples") or []:
            path = folder / entry["file"]
            # A name from a file must not lead out of the run.
            if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
                continue
            source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            if budget.take(len(source)):
                images.append(_example(entry, source, names))
        if images:
            found.append(Examples(arm, run.seed, tuple(images), run.analysis["num_samples"]))
    return found


def _example(entry: dict[str, Any], source: str, names: list[str]) -> Example:
    label, student, teacher = (entry.get(key) for key in ("label", "student", "teacher"))
    right = ""
    if label is not None:
        right = {student: "student", teacher: "teacher"}.get(label, "neither")
    shown = _name(names, label)
    what = f"an image of class {shown}" if shown else "an image"
    said = f"student: {_name(names, student)}, teacher: {_name(names, teacher)}"
    return Example(
        source,
        f"Held-out image {entry.get('index', '')}: {what}; {said}",
        label,
        shown,
        f"{_name(names, student)}{_sure(entry.get('student_confidence'))}",
        f"{_name(names, teacher)}{_sure(entry.get('teacher_confidence'))}",
        right,
    )


def _name(names: list[str], index: int | None) -> str:
    if index is None:
        return ""
    return names[index] if index < len(names) else str(index)


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f" ({100 * confidence:.0f} %)"
