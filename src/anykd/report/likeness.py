"""Where the features of student and teacher are alike (CKA), and how many directions they use."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .arms import Arm, Experiment
from .parts import Cell, Table
from .seeds import spread

__all__ = ["HeatMap", "heat_maps", "rank_table"]

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class HeatMap:
    """One matrix of likeness.

    Attributes:
        title: Whose, and when.
        says: What it says, in a sentence with numbers.
        rows: The student's layers.
        columns: The teacher's.
        values: In about [0, 1]; None where there is none.
    """

    title: str
    says: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Matrix


def heat_maps(experiment: Experiment) -> list[tuple[HeatMap, ...]]:
    """For each arm and teacher the matrices before and after training, means over seeds."""
    return [maps for arm in experiment.arms for maps in _of_arm(arm)]


def _of_arm(arm: Arm) -> Iterator[tuple[HeatMap, ...]]:
    by_teacher: dict[int, list[dict[str, Any]]] = {}
    for run in arm.runs:
        for found in run.analysis.get("cka") or []:
            by_teacher.setdefault(found["teacher"], []).append(found)
    for teacher, found in by_teacher.items():
        first = found[0]
        alike = [one for one in found if _layers(one) == _layers(first)]
        whose = arm.label if len(by_teacher) == 1 else f"{arm.label}, teacher {teacher + 1}"
        maps = []
        for key, when in (("before", "before training"), ("after", "after training")):
            matrices = [one[key] for one in alike if one.get(key)]
            if matrices:
                maps.append(_heat_map(f"{whose}, {when}", first, matrices))
        if maps:
            yield tuple(maps)


def _layers(found: dict[str, Any]) -> tuple[list[str], list[str]]:
    return found["student_layers"], found["teacher_layers"]


def _heat_map(title: str, layers: dict[str, Any], matrices: Sequence[Matrix]) -> HeatMap:
    rows, columns = layers["student_layers"], layers["teacher_layers"]
    values: Matrix = [
        [_mean(matrix[i][j] for matrix in matrices) for j in range(len(columns))]
        for i in range(len(rows))
    ]
    cells = [
        (value, i, j)
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if value is not None
    ]
    says = f"n = {len(matrices)}, {layers.get('num_samples', '?')} images"
    if cells:
        value, i, j = max(cells)
        mean = statistics.fmean(value for value, _, _ in cells)
        says = f"Most alike: {rows[i]} and {columns[j]}, {value:.2f}; mean {mean:.2f}; {says}"
    return HeatMap(title, f"{says}.", tuple(rows), tuple(columns), values)


def _mean(values: Iterator[float | None]) -> float | None:
    found = spread(values)
    return found.mean if found else None


def rank_table(experiment: Experiment) -> Table | None:
    """Effective rank of the features of every arm and of its teachers."""
    rows: list[tuple[str, int, list[dict[str, float]]]] = []
    for arm in experiment.arms:
        models = [run.analysis.get("student") or {} for run in arm.runs]
        rows.append((arm.label, arm.number, [model.get("effective_rank") or {} for model in models]))
    teachers: dict[str, dict[str, float]] = {}
    for run in experiment.runs:
        for model in run.analysis.get("teachers") or []:
            teachers.setdefault(model["name"], model.get("effective_rank") or {})
    rows = [(f"teacher {name}", -1, [ranks]) for name, ranks in teachers.items()] + rows
    layers = list(dict.fromkeys(layer for _, _, found in rows for one in found for layer in one))
    if not layers:
        return None
    table = []
    for label, number, found in rows:
        values = [spread(one.get(layer) for one in found) for layer in layers]
        if any(values):
            cells = [Cell(value.text(".1f") if value else "") for value in values]
            table.append((Cell(label, arm=number), *cells))
    return Table(
        "Effective rank: how many directions the features use, after training.",
        ("", *layers),
        tuple(table),
    )
