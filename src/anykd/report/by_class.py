"""What distillation changed for single classes: accuracy, confusions and images."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .arms import Arm, Experiment
from .examples import Example
from .parts import Cell, Table
from .record import RunRecord
from .seeds import spread

__all__ = ["Change", "Classes", "Confused", "class_changes"]

_SHOWN = 5
"""Classes at either end."""
_FEW = 12
"""A table of so many classes is not folded."""


@dataclass(frozen=True)
class Change:
    """A class, and how its accuracy differs from the control's.

    Attributes:
        index: Of the class: two may have one name.
        name: Of the class.
        points: Mean over the seeds that both arms have.
        own: The arm's accuracy in percent, the mean over those seeds.
        control: The control's.
        share: Length of its bar, in percent of the longest.
    """

    index: int
    name: str
    points: float
    own: float
    control: float
    share: float


@dataclass(frozen=True)
class Confused:
    """For what the images of a class are taken.

    Attributes:
        name: Of the class.
        points: How its accuracy differs from the control's.
        told: For each arm its label, number, and what it says in words.
        examples: Images of the class.
    """

    name: str
    points: float
    told: tuple[tuple[str, int, str], ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Classes:
    """Everything by class.

    Attributes:
        arm: Whose changes are shown: the best that learnt from a teacher.
        n: How many pairs of seeds; 0 without a control.
        gained: Classes that gained most.
        lost: Classes that lost most.
        confused: The most changed ones.
        table: All classes and all arms.
        folded: Whether there are many.
    """

    arm: Arm
    n: int
    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    confused: tuple[Confused, ...]
    table: Table
    folded: bool


def class_changes(
    experiment: Experiment, names: list[str], examples: tuple[Example, ...]
) -> Classes | None:
    """Compare arms class by class.

    Args:
        experiment: The runs.
        names: Of the classes.
        examples: Images on which student and teacher disagree, some of which may be shown.

    Returns:
        None where no run was analysed with labels.
    """
    scored = [arm for arm in experiment.arms if _accuracies(arm)]
    if not scored:
        return None
    control = experiment.control if experiment.control in scored else None
    arm = next((arm for arm in scored if not arm.is_control), scored[0])
    changes, n = _changes(arm, control, names) if control not in (None, arm) else ([], 0)
    table = _table(scored, experiment, names)
    confused = []
    if control is not None and n:
        most = sorted(changes, key=lambda change: -abs(change.points))[:4]
        confused = [_confused(change, names, (control, arm), examples) for change in most]
    return Classes(
        arm,
        n,
        tuple(change for change in changes[:_SHOWN] if change.points > 0),
        tuple(change for change in changes[::-1][:_SHOWN] if change.points < 0),
        tuple(one for one in confused if one is not None and one.points),
        table,
        len(names) > _FEW,
    )


def _accuracies(arm: Arm) -> dict[int, list[float | None]]:
    found = {run.seed: (run.analysis.get("student") or {}).get("per_class") for run in arm.runs}
    return {seed: values for seed, values in found.items() if values}


def _changes(arm: Arm, control: Arm | None, names: list[str]) -> tuple[list[Change], int]:
    """All classes, the greatest gain first, and over how many seeds."""
    assert control is not None
    own, other = _accuracies(arm), _accuracies(control)
    seeds = sorted(own.keys() & other.keys())
    found: list[tuple[int, float, float]] = []
    for index in range(len(names)):
        mine = spread(_at(own[seed], index) for seed in seeds)
        theirs = spread(_at(other[seed], index) for seed in seeds)
        if mine and theirs:
            found.append((index, mine.mean, theirs.mean))
    longest = max((abs(mine - theirs) for _, mine, theirs in found), default=0.0) or 1.0
    changes = [
        Change(index, names[index], mine - theirs, mine, theirs, 100 * abs(mine - theirs) / longest)
        for index, mine, theirs in found
    ]
    return sorted(changes, key=lambda change: -change.points), len(seeds)


def _at(values: list[float | None], index: int) -> float | None:
    return values[index] if index < len(values) else None


def _table(arms: list[Arm], experiment: Experiment, names: list[str]) -> Table:
    columns: list[tuple[str, int, dict[int, list[float | None]]]] = [
        (arm.label, arm.number, _accuracies(arm)) for arm in arms
    ]
    teachers = (
        teacher
        for run in experiment.runs
        for teacher in (run.analysis.get("teachers") or [])[:1]
        if teacher.get("per_class")
    )
    teacher = next(teachers, None)
    if teacher is not None:
        columns.append((f"teacher {teacher['name']}", -1, {0: teacher["per_class"]}))
    rows = []
    for index, name in enumerate(names):
        found = [spread(_at(one, index) for one in by_seed.values()) for _, _, by_seed in columns]
        rows.append((Cell(name), *(Cell(f"{one.mean:.1f}" if one else "") for one in found)))
    seeds = max(len(by_seed) for _, _, by_seed in columns)
    return Table(
        f"Accuracy of each class, %, mean over n = {seeds} seeds at most.",
        ("class", *(label for label, _, _ in columns)),
        tuple(rows),
    )


def _confused(
    change: Change, names: list[str], arms: tuple[Arm, Arm], examples: tuple[Example, ...]
) -> Confused | None:
    told = tuple(_told(arm, change.index, names) for arm in arms)
    own = tuple(example for example in examples if example.index == change.index)[:3]
    return Confused(change.name, change.points, told, own)


def _told(arm: Arm, index: int, names: list[str]) -> tuple[str, int, str]:
    counts: Counter[int] = Counter()
    for run in arm.runs:
        counts.update(dict(_row(run, index)))
    total = counts.total()
    right = counts.pop(index, 0)
    wrong = [f"{_name(names, other)} ({count}×)" for other, count in counts.most_common(3)]
    said = f"{right} of {total} right"
    return arm.label, arm.number, f"{said}; taken for {', '.join(wrong)}" if wrong else said


def _row(run: RunRecord, index: int) -> Iterator[tuple[int, int]]:
    for true, predicted, count in run.analysis.get("confusion") or []:
        if true == index:
            yield predicted, count


def _name(names: list[str], index: int) -> str:
    return names[index] if index < len(names) else str(index)
