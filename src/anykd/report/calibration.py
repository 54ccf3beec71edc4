"""Whether a model is as sure as it is right."""

from collections.abc import Iterable
from typing import Any

from .arms import Experiment
from .figures.lines import Line, reliability_chart
from .figures.svg import TEACHER
from .parts import Cell, Figure, Key, Table
from .seeds import spread

__all__ = ["calibration_figure", "calibration_table"]

Model = dict[str, Any]
Named = list[tuple[str, int, list[Model]]]


def _models(experiment: Experiment) -> Named:
    """Every arm, then the first teacher, with what was measured of it for each seed."""
    found: Named = []
    for arm in experiment.arms:
        own = [run.analysis.get("student") for run in arm.runs]
        found.append((arm.label, arm.number, [model for model in own if model]))
    teachers = [
        teacher
        for run in experiment.runs
        for teacher in (run.analysis.get("teachers") or [])[:1]
        if teacher.get("ece") is not None
    ]
    if teachers:
        found.append((f"teacher {teachers[0]['name']}", TEACHER, teachers[:1]))
    return found


def calibration_figure(experiment: Experiment) -> Figure | None:
    """Accuracy over confidence of every arm, its seeds taken together, and of the teacher."""
    lines = []
    for label, number, models in _models(experiment):
        points = _points(model.get("reliability") or [] for model in models)
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Line(label, number, x, y))
    if not lines:
        return None
    told = [
        f"{line.label} {100 * line.y[-1]:.0f} % right where it is {100 * line.x[-1]:.0f} % sure"
        for line in lines
    ]
    return Figure(
        "Accuracy over confidence",
        f"On the dotted diagonal a model is as often right as it is sure. {'; '.join(told)}.",
        reliability_chart(lines),
        tuple(Key(line.label, line.number) for line in lines),
    )


def _points(models: Iterable[list[dict[str, float | None]]]) -> list[tuple[float, float]]:
    """The bins of several models as one, weighted by how many images fell into each."""
    points = []
    for bins in zip(*(bins for bins in models if bins), strict=False):
        full = [(b["count"], b["confidence"], b["accuracy"]) for b in bins if b["count"]]
        total = sum(count for count, _, _ in full if count)
        if total:
            confidence = sum(n * c for n, c, _ in full if n and c is not None) / total
            accuracy = sum(n * a for n, _, a in full if n and a is not None) / total
            points.append((confidence, accuracy))
    return points


def calibration_table(experiment: Experiment) -> Table | None:
    """Errors of calibration and likelihoods."""
    rows = []
    for label, number, models in _models(experiment):
        ece = spread(model.get("ece") for model in models)
        nll = spread(model.get("nll") for model in models)
        if ece:
            cells = [Cell(ece.text(".3f")), Cell(nll.text(".3f") if nll else ""), Cell(str(ece.n))]
            rows.append((Cell(label, arm=number), *cells))
    if not rows:
        return None
    return Table(
        "Expected calibration error (0 is best) and negative log-likelihood in nats.",
        ("", "ECE", "NLL", "n"),
        tuple(rows),
    )
