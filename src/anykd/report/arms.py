"""Runs sorted for comparison: those that differ in the seed alone are one arm."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from .gain import Gain, measure_gain
from .record import RunRecord
from .seeds import Spread, spread

__all__ = ["Arm", "Experiment", "sort_runs", "teachers_of"]

_UNIMPORTANT = (
    *("seed", "track", "analysis", "train.log_every", "train.eval_every", "train.diagnoses"),
    *("train.checkpoint_every", "train.device", "data.workers"),
)
"""What changes no number of a student beyond what the seed does."""

_NUMBERED = (
    "control",
    "kd",
    "ofa",
    "fbt",
    "rsd",
    "dkd",
    "dist",
    "fitnet",
    "crd",
    "rkd",
    "cc",
    "pat",
)
"""The methods that are most often compared first: their colours are the furthest apart."""


@dataclass(frozen=True)
class Arm:
    """One training, repeated with several seeds.

    Attributes:
        label: Its method; where two arms have the same, also what else tells them apart.
        number: Decides its colour, dash and marker. 0 is the control; a method that anykd has
            looks the same in every report.
        runs: By seed.
    """

    label: str
    number: int
    runs: tuple[RunRecord, ...]

    @property
    def is_control(self) -> bool:
        """Whether no teacher has a part in it."""
        return self.runs[0].method == "control"

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that came to their end."""
        return tuple(run for run in self.runs if run.summary)

    @property
    def analysed(self) -> RunRecord | None:
        """The first run that was analysed."""
        return next((run for run in self.runs if run.analysis), None)

    def by_seed(self, key: str) -> dict[int, float]:
        """A number of the summary for each seed whose run is finished and has it."""
        found = {run.seed: run.summary.get(key) for run in self.finished}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, key: str) -> Spread | None:
        """A number of the summary over the seeds."""
        return spread(self.by_seed(key).values())


@dataclass(frozen=True)
class Experiment:
    """One student on one data set, trained in one or several ways.

    Attributes:
        student: Its name.
        data: The data's spec.
        arms: The control first, then the others, the best first.
        teacher_runs: The runs that trained the teachers, where they were given too.
    """

    student: str
    data: str
    arms: tuple[Arm, ...]
    teacher_runs: tuple[RunRecord, ...] = ()

    @property
    def data_name(self) -> str:
        """The data without their place on this machine: ``cifar100``, or a folder's own name."""
        kind, _, place = self.data.partition(":")
        if place:
            return self.data if kind in ("hf", "wds", "parquet", "synthetic") else kind
        return Path(self.data).name or self.data

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All runs of all arms."""
        return tuple(run for arm in self.arms for run in arm.runs)

    @property
    def control(self) -> Arm | None:
        """What the others are compared with: of several, the one with the most seeds."""
        controls = [arm for arm in self.arms if arm.is_control]
        return max(controls, key=lambda arm: len(arm.finished), default=None)

    @property
    def score(self) -> str:
        """What is compared: ``top1``, or ``agreement`` where there are no labels."""
        found = [run.summary or (run.epochs[-1] if run.epochs else {}) for run in self.runs]
        if any("top1" in one for one in found):
            return "top1"
        return "agreement" if any("agreement" in one for one in found) else "top1"

    def gain(self, arm: Arm) -> Gain | None:
        """How much an arm is above the control; None for the control itself."""
        if self.control is None or arm is self.control:
            return None
        return measure_gain(arm.finished, self.control.finished)

    def differs(self, arm: Arm) -> list[str]:
        """What an arm's recipe has that the control's has not, beside method and teacher."""
        if self.control is None or arm is self.control:
            return []
        own, other = _flat(arm.runs[0].recipe), _flat(self.control.runs[0].recipe)
        return sorted(
            key
            for key in own.keys() & other.keys()
            if own[key] != other[key]
            and not key.startswith(("method", "teacher"))
            and not _unimportant(key)
        )


def teachers_of(run: RunRecord) -> list[dict[str, Any]]:
    """The teachers that a run's summary names; of an unfinished run, those of its plan."""
    found = run.summary.get("teachers")
    if found is None:
        found = [run.summary["teacher"]] if run.summary.get("teacher") else []
    if not found and not run.summary:
        found = [model for model in run.plan.get("models", []) if model["role"] != "student"]
    return found


def sort_runs(runs: Sequence[RunRecord]) -> list[Experiment]:
    """Sort runs into experiments and arms, in an order that does not depend on theirs."""
    teachers = _teacher_runs(runs)
    by_student: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        if run not in teachers:
            by_student[_student_key(run)].append(run)
    found = []
    for group in by_student.values():
        recipe = group[0].recipe
        own = [run for run in teachers if _teaches(run, group)]
        found.append(
            Experiment(recipe["student"]["name"], recipe["data"]["source"], _arms(group), (*own,))
        )
    return sorted(found, key=lambda experiment: (experiment.data, experiment.student))


def _student_key(run: RunRecord) -> str:
    """Runs are comparable that score the same student on the same images."""
    data = run.recipe["data"]
    kept = {key: data.get(key) for key in ("source", "val_fraction", "split_seed", "limit")}
    student = run.recipe["student"]
    named = {key: student.get(key) for key in ("name", "options", "pretrained")}
    return json.dumps([named, kept], sort_keys=True)


def _arms(runs: Iterable[RunRecord]) -> tuple[Arm, ...]:
    by_recipe: dict[str, list[RunRecord]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.seed, str(run.path))):
        flat = {key: value for key, value in _flat(run.recipe).items() if not _unimportant(key)}
        by_recipe[json.dumps(flat, sort_keys=True, default=str)].append(run)
    groups = [split for group in by_recipe.values() for split in _once_each(group)]
    labels = _labels(groups)

    def place(index: int) -> tuple[bool, float, str]:
        run = groups[index][0]
        found = spread(
            one.summary.get("top1", one.summary.get("agreement")) for one in groups[index]
        )
        return (run.method != "control", -(found.mean if found else 0.0), labels[index])

    order = sorted(range(len(groups)), key=place)
    numbers = _numbers([groups[index][0].method for index in order])
    return tuple(
        Arm(labels[index], number, tuple(groups[index]))
        for index, number in zip(order, numbers, strict=True)
    )


def _numbers(methods: Sequence[str]) -> list[int]:
    """Each method's own number; a second arm of it, or another method, has the next free one."""
    own = {method: _NUMBERED.index(method) for method in methods if method in _NUMBERED}
    taken = set(own.values())
    free = (number for number in count(1) if number not in taken)
    return [own.pop(method) if method in own else next(free) for method in methods]


def _once_each(group: list[RunRecord]) -> list[list[RunRecord]]:
    """The same seed twice is a repetition and no further seed: it stands by itself."""
    split: list[list[RunRecord]] = []
    for run in group:
        for one in split:
            if run.seed not in [other.seed for other in one]:
                one.append(run)
                break
        else:
            split.append([run])
    return split


def _labels(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """The methods; where two are the same, with the values in which their recipes differ."""
    labels = []
    for group in groups:
        run = group[0]
        same = [other[0] for other in groups if other[0].method == run.method]
        differing = list(_differing([other.recipe for other in same]))[:2]
        own = _flat(run.recipe)
        told = [f"{key.rpartition('.')[2]} {own.get(key, 'unset')}" for key in differing]
        labels.append(", ".join([run.method, *told]))
    return [
        label if labels.count(label) == 1 else f"{label}, {group[0].path.name}"
        for label, group in zip(labels, groups, strict=True)
    ]


def _differing(recipes: Sequence[dict[str, Any]]) -> Iterator[str]:
    flat = [_flat(recipe) for recipe in recipes]
    for key in dict.fromkeys(key for one in flat for key in one):
        if (
            not _unimportant(key)
            and len({json.dumps(one.get(key), default=str) for one in flat}) > 1
        ):
            yield key


def _unimportant(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _UNIMPORTANT)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables by dotted keys; the tables of several teachers or methods by number."""
    if isinstance(values, list) and values and isinstance(values[0], dict):
        values = {str(number): value for number, value in enumerate(values, start=1)}
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, below in values.items()
        for key, value in _flat(below, f"{prefix}.{name}" if prefix else name).items()
    }


def _teacher_names(run: RunRecord) -> list[str]:
    tables = run.recipe.get("teacher") or []
    several = tables if isinstance(tables, list) else [tables]
    return [table["name"] for table in several if table.get("name")]


def _teaches(teacher: RunRecord, runs: Iterable[RunRecord]) -> bool:
    """Whether a run is a teacher of others: named by its path, or lying beside them."""
    path = teacher.path.resolve()
    return any(
        path in (Path(name).resolve(), (run.path.parent / Path(name).name).resolve())
        for run in runs
        if run is not teacher
        for name in _teacher_names(run)
    )


def _teacher_runs(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that trained teachers and are no arms: a student of its own is none of them."""
    return [run for run in runs if run.method == "control" and _teaches(run, runs)]
