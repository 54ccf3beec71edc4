"""What training looked like: lines over epochs, the mean of an arm's seeds."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .arms import Arm, Experiment, teachers_of
from .figures.lines import Line, line_chart, share_chart
from .figures.svg import TEACHER
from .parts import Figure, Key
from .record import RunRecord

__all__ = ["curve_figures", "term_figures", "term_names"]

_POINTS = 80
"""Points of a line over steps; more cannot be told apart in a figure."""
_NO_TERMS = frozenset(
    "event epoch step lr loss grad_norm bad_steps images_per_second loss_scale".split()
)
_TAKES_LOG = 30.0
"""A chart whose values span more than this factor has a logarithmic axis."""

Values = dict[str, Any]


def curve_figures(experiment: Experiment) -> list[Figure]:
    """The charts over training that compare the arms."""
    of_arms = (
        (_held_out, {}),
        (_of_epochs, {"key": "agreement", "title": "Agreement with the teacher, held out, %"}),
        (_of_steps, {"key": "loss", "title": "Training loss"}),
        (_of_steps, {"key": "grad_norm", "title": "Norm of the gradient"}),
        (_of_steps, {"key": "lr", "title": "Learning rate"}),
        (_of_steps, {"key": "images_per_second", "title": "Images per second"}),
    )
    found = [make(experiment, **options) for make, options in of_arms]
    return [figure for figure in found if figure is not None]


def term_figures(experiment: Experiment) -> list[Figure]:
    """For each arm the terms of its loss, and their shares of the gradient."""
    names = term_names(experiment)
    found = [make(arm, names) for arm in experiment.arms for make in (_terms, _shares)]
    return [figure for figure in found if figure is not None]


def term_names(experiment: Experiment) -> list[str]:
    """The terms of all arms' losses, that of the labels first."""
    found = {name for run in experiment.runs for name in _terms_of(run)}
    return sorted(found, key=lambda name: (name != "task", name))


def _terms_of(run: RunRecord) -> list[str]:
    return [key for key in (run.steps[-1] if run.steps else {}) if key not in _NO_TERMS]


def _held_out(experiment: Experiment) -> Figure | None:
    score = experiment.score
    if score != "top1":
        return None
    lines = [line for arm in experiment.arms if (line := _epoch_line(arm, score))]
    for arm in experiment.arms:
        fusion = _epoch_line(arm, "fusion_top1", label=f"fusion of {arm.label}", faint=True)
        lines += [fusion] if fusion else []
    teacher = _teacher_score(experiment)
    return _figure(lines, "Held-out top-1, %", level=teacher)


def _of_epochs(experiment: Experiment, *, key: str, title: str) -> Figure | None:
    lines = [line for arm in experiment.arms if (line := _epoch_line(arm, key))]
    return _figure(lines, title)


def _of_steps(experiment: Experiment, *, key: str, title: str) -> Figure | None:
    lines = [line for arm in experiment.arms if (line := _step_line(arm, key))]
    if key == "lr" and len({(line.x, line.y) for line in lines}) == 1:
        lines = [_relabelled(lines[0], "every run" if len(lines) > 1 else lines[0].label)]
    return _figure(lines, title, log=key in ("loss", "grad_norm"))


def _terms(arm: Arm, names: Sequence[str]) -> Figure | None:
    lines = [
        line
        for number, name in enumerate(names)
        if (line := _step_line(arm, name, label=name, number=number))
    ]
    if len(lines) < 2:
        return None  # a single term is the loss
    return _figure(lines, f"Terms of the loss: {arm.label}", log=True)


def _shares(arm: Arm, names: Sequence[str]) -> Figure | None:
    diagnoses = [line for run in arm.runs for line in run.diagnoses if line.get("grad_shares")]
    by_epoch: dict[int, list[Values]] = defaultdict(list)
    for line in diagnoses:
        by_epoch[line["epoch"]].append(line["grad_shares"])
    own = [name for name in names if any(name in line["grad_shares"] for line in diagnoses)]
    if len(own) < 2 or len(by_epoch) < 2:
        return None
    epochs = sorted(by_epoch)
    lines = []
    for name in own:
        shares = [_mean(one.get(name) for one in by_epoch[epoch]) or 0.0 for epoch in epochs]
        x = tuple(epoch + 1.0 for epoch in epochs)
        lines.append(Line(name, names.index(name), x, tuple(shares)))
    said = "; ".join(f"{line.label} {_percent(line.y[0])}, {_percent(line.y[-1])}" for line in lines)
    return Figure(
        f"Shares of the gradient by term: {arm.label}",
        f"At the first and the last measurement: {said}.",
        share_chart(lines),
        tuple(Key(line.label, line.number) for line in lines),
    )


def _figure(
    lines: Sequence[Line], title: str, *, level: float | None = None, log: bool = False
) -> Figure | None:
    if not lines:
        return None
    values = [value for line in lines for value in line.y]
    wide = min(values) > 0 and max(values) > _TAKES_LOG * min(values)
    keys = [Key(line.label, line.number) for line in lines if not line.faint]
    if level is not None:
        keys.append(Key("teacher", TEACHER))
    told = [f"{line.label} {_span(line)}" for line in lines]
    told += [f"teacher {level:.2f}"] if level is not None else []
    if any(line.faint for line in lines):
        title = f"{title} (thin: the fusion)"
    return Figure(
        title,
        f"First and last value of each line: {'; '.join(told)}.",
        line_chart(lines, level=level, log=log and wide),
        tuple(keys) if len(keys) > 1 else (),
    )


def _span(line: Line) -> str:
    return f"{line.y[0]:.4g} to {line.y[-1]:.4g}"


def _relabelled(line: Line, label: str) -> Line:
    return Line(label, line.number, line.x, line.y, line.std)


def _epoch_line(
    arm: Arm, key: str, *, label: str | None = None, faint: bool = False
) -> Line | None:
    runs = [[(one["epoch"] + 1.0, one.get(key)) for one in run.epochs] for run in arm.runs]
    return _averaged(runs, label or arm.label, arm.number, faint=faint)


def _step_line(
    arm: Arm, key: str, *, label: str | None = None, number: int | None = None
) -> Line | None:
    """Steps by where they are in training, in so many pieces that a figure can show."""
    lengths = {run.path: _steps_of_epoch(run.steps) for run in arm.runs}
    last = max((line["epoch"] + 1.0 for run in arm.runs for line in run.steps), default=1.0)
    width = last / _POINTS
    runs = []
    for run in arm.runs:
        pieces: dict[int, list[float]] = defaultdict(list)
        for line in run.steps:
            value = line.get(key)
            if value is not None:
                at = line["epoch"] + line["step"] / lengths[run.path]
                pieces[int(at / width)].append(value)
        runs.append([((piece + 0.5) * width, _mean(pieces[piece])) for piece in sorted(pieces)])
    return _averaged(runs, label or arm.label, arm.number if number is None else number)


def _steps_of_epoch(steps: Iterable[Values]) -> int:
    return max((line["step"] for line in steps), default=0) + 1


def _averaged(
    runs: Iterable[Iterable[tuple[float, float | None]]],
    label: str,
    number: int,
    *,
    faint: bool = False,
) -> Line | None:
    """Mean and deviation over the runs at every place that each of them reached."""
    by_place: dict[float, list[float]] = defaultdict(list)
    counted = 0
    for run in runs:
        points = [(x, y) for x, y in run if _is_number(y)]
        counted += bool(points)
        for x, y in points:
            by_place[x].append(y)  # pyright: ignore[reportArgumentType]
    places = sorted(x for x, values in by_place.items() if len(values) == counted)
    if not places:
        return None
    means = tuple(statistics.fmean(by_place[x]) for x in places)
    std = tuple(statistics.stdev(by_place[x]) for x in places) if counted > 1 else None
    return Line(label, number, tuple(places), means, std, faint)


def _teacher_score(experiment: Experiment) -> float | None:
    found = [teacher.get("top1") for run in experiment.runs for teacher in teachers_of(run)]
    return next((score for score in found if score is not None), None)


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if _is_number(value)]
    return statistics.fmean(found) if found else None  # pyright: ignore[reportArgumentType]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
