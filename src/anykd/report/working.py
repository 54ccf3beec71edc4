"""Is it working? Sentences that follow from the numbers of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .record import RunRecord

__all__ = ["Sign", "judge"]


@dataclass(frozen=True)
class Sign:
    """One thing that the numbers of a run say about it.

    Attributes:
        severity: A warning asks for something to be done; a note is worth knowing; good is good.
        code: Short name that does not change, such as ``term-did-not-fall``.
        message: What the numbers say, with the numbers, on one line.
        remedy: What would mend it, on one line; empty where nothing has to be mended.
    """

    severity: Literal["good", "note", "warning"]
    code: str
    message: str
    remedy: str = ""


Rule = Callable[[RunRecord], list[Sign]]


def judge(record: RunRecord, *, controls: Sequence[RunRecord] = ()) -> tuple[Sign, ...]:
    """Say what the numbers of a run mean, the most pressing first.

    Args:
        record: A run; what it has not measured is passed over.
        controls: Runs of the control arm, to compare it with; without them its gain is unknown.
    """
    found = [sign for rule in _RULES for sign in rule(record)]
    order = ("warning", "note", "good")
    return tuple(sorted(found, key=lambda sign: order.index(sign.severity)))


def _bad_steps(record: RunRecord) -> list[Sign]:
    bad, steps = record.summary.get("bad_steps"), len(record.steps)
    if not bad or not steps:
        return []
    return [
        Sign(
            "warning",
            "bad-steps",
            f"{bad} steps had no finite loss and gradient, and were skipped",
            "lower train.peak_lr, set train.clip_grad = 5, or train.precision = 'float32'",
        )
    ]


def _teacher_is_worse(record: RunRecord) -> list[Sign]:
    student = record.summary.get("top1")
    if student is None:
        return []
    return [
        Sign(
            "note",
            "teacher-is-worse",
            f"the student's top-1 is {student:.2f} %, its teacher's {teacher['top1']:.2f} %",
            "take a better teacher, or train this one longer",
        )
        for teacher in record.summary.get("teachers", ())
        if teacher.get("top1") is not None and teacher["top1"] < student
    ]


_RULES: tuple[Rule, ...] = (_bad_steps, _teacher_is_worse)
