"""What the scores of a run on held-out images say."""

import math
from statistics import median

from .metrics import FEWEST, curve, ends
from .noise import noise_of_difference
from .record import RunRecord
from .sign import Sign

__all__ = [
    "agreement_does_not_rise",
    "agrees_less_with_the_teacher",
    "fusion_is_worse",
    "got_worse",
    "still_improves",
    "student_is_broken",
    "teacher_is_worse",
]


def student_is_broken(record: RunRecord) -> list[Sign]:
    """Look whether the student's class scores are numbers."""
    loss = record.summary.get("loss", 0.0)
    if loss is not None and math.isfinite(loss):
        return []
    said = "the student's class scores are not finite: its accuracy is that of always one class"
    remedy = "lower train.peak_lr, set train.clip_grad = 5, or train.precision = 'float32'"
    return [Sign("warning", "student-broken", said, remedy)]


def agrees_less_with_the_teacher(record: RunRecord) -> list[Sign]:
    """Compare whom the student follows: its teacher or the labels."""
    agreement, top1 = record.summary.get("agreement"), record.summary.get("top1")
    if agreement is None or top1 is None or teacher_is_worse(record):
        return []
    said = (
        f"the student chooses its teacher's class for {agreement:.1f} % of the held-out images, "
        f"the labels' for {top1:.1f} %"
    )
    if top1 - agreement > noise_of_difference(top1, record.summary.get("num_samples")):
        remedy = "raise the weights of the method's terms, if the teacher is to be followed"
        return [Sign("note", "agrees-less-with-teacher", said, remedy)]
    return [Sign("good", "agrees-with-teacher", said)] if agreement > top1 else []


def agreement_does_not_rise(record: RunRecord) -> list[Sign]:
    """Compare the ends of the agreement with the teacher."""
    values = curve(record.epochs, "agreement")
    if len(values) < FEWEST:
        return []
    first, last = ends(values)
    noise = noise_of_difference(last, record.epochs[-1].get("num_samples"))
    if last > first or last > 100 - noise:
        return []
    return [
        Sign(
            "warning",
            "agreement-did-not-rise",
            f"the student agrees with its teacher no more than at first: on {first:.1f} % of the "
            f"held-out images in the first tenth of the epochs, on {last:.1f} % in the last",
            "look at the learning rate, and at the weights of the method's terms",
        )
    ]


def fusion_is_worse(record: RunRecord) -> list[Sign]:
    """Compare the fusion of FBT with the student that it teaches."""
    fusion, top1 = record.summary.get("fusion_top1"), record.summary.get("top1")
    if fusion is None or top1 is None:
        return []
    said = f"the fusion's top-1 is {fusion:.1f} %, the student's {top1:.1f} %"
    if top1 - fusion > noise_of_difference(top1, record.summary.get("num_samples")):
        remedy = "train longer or on more images: what teaches should know more than who learns"
        return [Sign("warning", "fusion-is-worse", said, remedy)]
    return [Sign("good", "fusion-leads", said)] if fusion > top1 else []


def teacher_is_worse(record: RunRecord) -> list[Sign]:
    """Find teachers that know less than the student."""
    student, count = record.summary.get("top1"), record.summary.get("num_samples")
    if student is None:
        return []
    return [
        Sign(
            "note",
            "teacher-is-worse",
            f"the student's top-1 is {student:.2f} %, that of its teacher {teacher['name']} "
            f"{teacher['top1']:.2f} %",
            "take a better teacher, or train this one longer",
        )
        for teacher in record.summary.get("teachers", ())
        if student - teacher.get("top1", student) > noise_of_difference(student, count)
    ]


def still_improves(record: RunRecord) -> list[Sign]:
    """Look whether the last evaluations are better than those before."""
    values = curve(record.epochs, "top1")
    size = max(2, len(values) // 10)
    if len(values) < 2 * size + 1:
        return []
    before, last = median(values[-2 * size : -size]), median(values[-size:])
    if last - before <= noise_of_difference(last, record.epochs[-1].get("num_samples")):
        return []
    return [
        Sign(
            "note",
            "still-improving",
            f"top-1 still rose at the end: {last:.1f} % over the last {size} evaluations, "
            f"{before:.1f} % over the {size} before",
            "train longer: --epochs",
        )
    ]


def got_worse(record: RunRecord) -> list[Sign]:
    """Look whether the best epoch is long past."""
    scored = [line for line in record.epochs if line.get("top1") is not None]
    values = curve(scored, "top1")
    if len(values) < FEWEST:
        return []
    best, last = max(values), values[-1]
    when = 1 + scored[values.index(best)]["epoch"]
    epochs = 1 + scored[-1]["epoch"]
    noise = noise_of_difference(best, record.epochs[-1].get("num_samples"))
    if best - last <= noise or when > 0.8 * epochs:
        return []
    return [
        Sign(
            "warning",
            "got-worse",
            f"top-1 was best after epoch {when} of {epochs} with {best:.1f} %, and is {last:.1f} % "
            "after the last",
            "train for fewer epochs, or augment more; checkpoint/best.safetensors holds the best",
        )
    ]
