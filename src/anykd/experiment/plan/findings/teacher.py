"""What may be amiss with a teacher: what it knows, and how it sees the images."""

import math
from collections.abc import Iterator, Mapping

from jaxtyping import Bool
from torch import Tensor

from anykd.experiment.plan.finding import Finding
from anykd.experiment.plan.normalisation import Normalisation
from anykd.experiment.teacher_classes import TeacherClasses
from anykd.models.checkpoints import LoadedWeights

__all__ = [
    "ENOUGH",
    "JUMP",
    "broken_scores",
    "doubtful_classes",
    "larger_student",
    "near_chance",
    "random_classifier",
    "wiser_student",
    "wrong_normalisation",
]

Hits = Bool[Tensor, " images"]
"""Which images of a sample a model gets right."""

ENOUGH = 100
"""Images from which a teacher that does no better than chance is certain to be no teacher."""
JUMP = 0.1
"""Gain of accuracy from which another normalisation is taken for the right one."""


def near_chance(
    name: str, hits: Hits, num_classes: int, *, of_a_run: bool = False
) -> Iterator[Finding]:
    """A teacher knows about as much as a guess.

    Args:
        name: The teacher.
        hits: Its right answers on held-out images.
        num_classes: Classes to guess from.
        of_a_run: Whether anykd trained it. Then it is a weak teacher, as its own run said, and no
            model that is used wrongly: a warning, however little it knows.
    """
    count, right, chance = len(hits), int(hits.sum()), 1 / num_classes
    spread = math.sqrt(count * chance * (1 - chance))
    told_apart = right > count * chance + 2 * spread
    hopeless = count >= ENOUGH and not told_apart
    if hopeless or right < 2 * chance * count:
        yield Finding(
            "error" if hopeless and not of_a_run else "warning",
            "teacher-near-chance",
            f"the top-1 of teacher {name} is {100 * right / count:.2f} % on {count} held-out "
            f"images, where chance is {100 * chance:.2f} %",
            "was it trained for these classes, in this order, and on images like these?",
        )


def broken_scores(name: str, broken: int, count: int) -> Iterator[Finding]:
    """A teacher's class scores are no finite numbers.

    Args:
        name: The teacher.
        broken: Held-out images for which they are not.
        count: Images that were looked at.
    """
    yield Finding(
        "error",
        "teacher-not-finite",
        f"the class scores of teacher {name} are no finite numbers on {broken} of {count} "
        "held-out images",
        "its weights may be broken, or the precision too low: try train.precision = float32",
    )


def wiser_student(name: str, teacher: Hits, student: Hits) -> Iterator[Finding]:
    """The student knows more than its teacher before it has learnt anything.

    Args:
        name: The teacher.
        teacher: Its right answers.
        student: The student's on the same images.
    """
    if _clearly_better(student, teacher):
        yield Finding(
            "warning",
            "student-above-teacher",
            f"the pretrained student has a top-1 of {_percent(student)} on {len(student)} held-out "
            f"images, teacher {name} has {_percent(teacher)}",
            "take a better teacher, or the student as it is",
        )


def wrong_normalisation(
    name: str, own: Hits, others: Mapping[Normalisation, Hits]
) -> Iterator[Finding]:
    """A teacher is better with another mean and standard deviation than with its own.

    Args:
        name: The teacher.
        own: Its right answers.
        others: Those where it sees the same images normalised another way.
    """
    better = {
        other: int(hits.sum())
        for other, hits in others.items()
        if _clearly_better(hits, own) and int(hits.sum()) - int(own.sum()) >= JUMP * len(own)
    }
    if better:
        best = max(better, key=lambda other: better[other])
        yield Finding(
            "error",
            "wrong-normalisation",
            f"teacher {name} has a top-1 of {_percent(own)} with its mean and std, and "
            f"{_percent(others[best])} with {best.name}",
            f"if it was trained so, set {best.setting}",
        )


def random_classifier(name: str, loaded: LoadedWeights | None) -> Iterator[Finding]:
    """A teacher whose class scores are compared has a classifier that no weights were loaded for.

    Args:
        name: The teacher.
        loaded: Where its weights come from, and what they left out.
    """
    if loaded is not None and loaded.new_head:
        held = "" if loaded.saved_classes is None else f"score {loaded.saved_classes} classes and "
        yield Finding(
            "error",
            "random-classifier",
            f"the weights of teacher {name} {held}hold no classifier for those that were asked "
            "for: its class scores would be random",
            "leave teacher.options.num_classes out, give it a new head by --teacher-head probe or "
            "finetune, or let only methods that compare features learn from it, such as rsd",
        )


def doubtful_classes(classes: TeacherClasses) -> Iterator[Finding]:
    """How a teacher comes by the data's classes wants a person's eye."""
    if classes.warning:
        yield Finding("warning", "teacher-classes", classes.warning, classes.remedy)


def larger_student(student: int, teacher: int) -> Iterator[Finding]:
    """The student has more parameters than its teacher.

    Args:
        student: Parameters of the student.
        teacher: Parameters of the largest teacher.
    """
    if student > teacher:
        yield Finding(
            "note",
            "student-larger",
            f"the student has {student / teacher:.3g} times the parameters of its teacher",
            "were the two confused? A larger student seldom gains",
        )


def _clearly_better(better: Hits, worse: Hits) -> bool:
    """Whether one is right where the other is wrong more often than by chance.

    The exchange of right answers is compared with three standard deviations (McNemar's test).
    """
    wins, losses = int((better & ~worse).sum()), int((worse & ~better).sum())
    return wins > losses and (wins - losses) ** 2 >= 9 * (wins + losses)


def _percent(hits: Hits) -> str:
    return f"{100 * hits.float().mean().item():.2f} %"
