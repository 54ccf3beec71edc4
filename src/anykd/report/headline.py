"""The first thing a reader asks: what did distillation give, and what did the student save."""

from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote
from typing import Any

from anykd.units import amount, duration

from .arms import Arm, Experiment, teachers_of
from .figures.dots import Dots, dot_chart
from .parts import Cell, Figure, Table
from .seeds import Gain, spread

__all__ = ["Headline", "Tile", "headline"]


@dataclass(frozen=True)
class Tile:
    """One large number.

    Attributes:
        number: As it is read.
        unit: Behind it, smaller.
        label: What it is.
        note: How sure, or of what.
    """

    number: str
    unit: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """The top of an experiment.

    Attributes:
        sentence: What was found, in words.
        tiles: In large numbers.
        table: Teacher, control and every arm.
        figure: Every run as a dot; None where there is but one.
        hint: A command that would tell more, and why, or two empty strings.
    """

    sentence: str
    tiles: tuple[Tile, ...]
    table: Table
    figure: Figure | None
    hint: tuple[str, str]


def headline(experiment: Experiment) -> Headline:
    """Say what an experiment found."""
    best = _best(experiment)
    return Headline(
        _sentence(experiment, best),
        tuple(_tiles(experiment, best)),
        _table(experiment),
        _figure(experiment),
        _hint(experiment),
    )


def _best(experiment: Experiment) -> Arm | None:
    """The arm with the highest mean among those that a teacher had a part in."""
    scored = [arm for arm in experiment.arms if arm.finished and arm.spread(experiment.score)]
    return next((arm for arm in scored if not arm.is_control), scored[0] if scored else None)


def _sentence(experiment: Experiment, best: Arm | None) -> str:
    student, data = experiment.student, experiment.data
    if best is None:
        begun = max((len(run.epochs) for run in experiment.runs), default=0)
        return f"{student} on {data}: no run has come to its end; {begun} evaluations so far."
    score = best.spread(experiment.score)
    assert score is not None
    what = "top-1" if experiment.score == "top1" else "agreement with the teacher"
    reached = f"{score.text()} % {what} (n = {score.n})"
    gained = experiment.gain(best)
    if best.is_control:
        return f"{student}, trained with labels alone on {data}, reaches {reached}."
    said = f"{student}, taught by {best.label} on {data}, reaches {reached}"
    return f"{said}: {_gain_in_words(gained)}." if gained else f"{said}."


def _gain_in_words(found: Gain) -> str:
    points = f"{abs(found.spread.mean):.2f}"
    side = "above" if found.spread.mean >= 0 else "below"
    if not found.paired:
        return f"{points} points {side} the control, of other seeds, so not compared pair by pair"
    if found.interval is None:
        return f"{points} points {side} the control with one seed, which proves nothing yet"
    std = f" ± {found.spread.std:.2f}" if found.spread.std is not None else ""
    sure = (
        "which is within the noise of the seeds"
        if found.within_noise
        else "more than the noise of the seeds"
    )
    return f"{points}{std} points {side} the control over {found.spread.n} paired seeds, {sure}"


def _tiles(experiment: Experiment, best: Arm | None) -> Iterator[Tile]:
    score = best.spread(experiment.score) if best else None
    if best is not None and score is not None:
        label = "top-1" if experiment.score == "top1" else "agreement with the teacher"
        yield Tile(f"{score.mean:.2f}", "%", f"{label}, {best.label}", _with_n(score.std, score.n))
        gained = experiment.gain(best)
        if gained is not None:
            note = "paired" if gained.paired else "not paired"
            verdict = {True: ", within noise", False: "", None: ""}[gained.within_noise]
            told = f"{_with_n(gained.spread.std, gained.spread.n)}, {note}{verdict}"
            yield Tile(f"{gained.spread.mean:+.2f}", "points", "gain over the control", told)
    student, teacher = _cost(experiment)
    for key, label, form in (
        ("parameters", "fewer parameters", amount),
        ("flops", "fewer FLOPs", amount),
        ("latency_ms", "shorter latency", lambda ms: duration(ms / 1000)),
    ):
        own, other = student.get(key), teacher.get(key)
        if own and other:
            factor, label = other / own, label if other >= own else _opposite(label)
            shown = f"{factor if factor >= 1 else 1 / factor:.3g}"
            yield Tile(shown, "×", label, f"{form(own)} against the teacher's {form(other)}")


def _opposite(label: str) -> str:
    return label.replace("fewer", "more").replace("shorter", "longer")


def _with_n(std: float | None, n: int) -> str:
    return f"n = {n}" if std is None else f"± {std:.2f}, n = {n}"


def _cost(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """What student and first teacher cost: measured by the analysis, else as the plan has it."""
    student: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    for run in experiment.runs:
        models = run.plan.get("models", [])
        cost = run.analysis.get("cost") or {}
        student = {"parameters": run.summary.get("parameters")} | _known(models[:1]) | student
        student |= {key: value for key, value in (cost.get("student") or {}).items() if value}
        teacher = _known(models[1:2]) | teacher
        for measured in (cost.get("teachers") or [])[:1]:
            teacher |= {key: value for key, value in measured.items() if value}
    for run in experiment.teacher_runs:
        teacher = {"parameters": run.summary.get("parameters")} | teacher
    return student, teacher


def _known(models: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: model[key] for model in models for key in ("parameters", "flops")}


def _table(experiment: Experiment) -> Table:
    score = experiment.score
    name = "top-1, %" if score == "top1" else "agreement with the teacher, %"
    columns = ["", name, "n", "gain, points", "agreement, %", "ECE", "seconds a run"]
    rows = [*_teacher_rows(experiment)]
    rows += [_arm_row(experiment, arm) for arm in experiment.arms]
    kept = [0, 1, 2, *(at for at in range(3, len(columns)) if any(row[at].text for row in rows))]
    if score == "agreement":
        kept.remove(4) if 4 in kept else None
    return Table(
        "Mean ± sample standard deviation over n seeds; the gain is that of pairs of one seed.",
        tuple(columns[at] for at in kept),
        tuple(tuple(row[at] for at in kept) for row in rows),
    )


def _teacher_rows(experiment: Experiment) -> Iterator[tuple[Cell, ...]]:
    found: dict[str, dict[str, Any]] = {}
    for run in experiment.runs:
        for teacher in teachers_of(run):
            found.setdefault(teacher.get("source") or teacher["name"], teacher)
    for teacher in found.values():
        top1 = teacher.get("top1")
        shown = "" if top1 is None else f"{top1:.2f}"
        where = teacher.get("source", "")
        note = where if where != teacher["name"] else ""
        first = Cell(f"teacher {teacher['name']}", arm=-1, note=note)
        ece = spread(
            model.get("ece")
            for run in experiment.runs
            for model in run.analysis.get("teachers", [])[:1]
            if model["name"] == teacher["name"]
        )
        calibration = Cell(format(ece.mean, ".3f") if ece else "")
        yield (first, Cell(shown), Cell(""), Cell(""), Cell(""), calibration, Cell(""))


def _arm_row(experiment: Experiment, arm: Arm) -> tuple[Cell, ...]:
    score = arm.spread(experiment.score)
    unfinished = len(arm.runs) - len(arm.finished)
    differs = experiment.differs(arm)
    notes = []
    if arm is experiment.control and len(experiment.arms) > 1:
        notes.append("what the others are compared with")
    if unfinished:
        notes.append(f"{unfinished} of {len(arm.runs)} runs unfinished")
    if differs:
        notes.append(f"trained otherwise than the control: {', '.join(differs[:4])}")
    shown = Cell(score.text(), tone="strong") if score else Cell(_so_far(experiment, arm))
    agreement = spread(_agreement(run.summary, run.analysis) for run in arm.finished)
    ece = spread((run.analysis.get("student") or {}).get("ece") for run in arm.finished)
    seconds = arm.spread("seconds")
    return (
        Cell(arm.label, arm=arm.number, note="; ".join(notes)),
        shown,
        Cell(str(score.n if score else 0)),
        _gain_cell(experiment.gain(arm)),
        Cell(agreement.text() if agreement else ""),
        Cell(ece.text(".3f") if ece else ""),
        Cell(f"{seconds.mean:.0f}" if seconds else ""),
    )


def _agreement(summary: dict[str, Any], analysis: dict[str, Any]) -> float | None:
    teachers = analysis.get("teachers") or [{}]
    found = (teachers[0].get("agreement") or {}).get("top1")
    return summary.get("agreement") if found is None else found


def _so_far(experiment: Experiment, arm: Arm) -> str:
    run = max(arm.runs, key=lambda run: len(run.epochs))
    value = run.epochs[-1].get(experiment.score) if run.epochs else None
    if value is None:
        return "unfinished"
    return f"{value:.2f} after {run.epochs[-1]['epoch'] + 1} epochs"


def _gain_cell(found: Gain | None) -> Cell:
    if found is None:
        return Cell("")
    shown = found.spread.text("+.2f")
    if not found.paired:
        return Cell(shown, note="no seed in common")
    if found.interval is None:
        return Cell(shown, note="one seed proves nothing")
    if found.within_noise:
        return Cell(shown, note=f"within noise, n = {found.spread.n}")
    return Cell(
        shown,
        note=f"95 %: ± {found.interval:.2f}, n = {found.spread.n}",
        tone="good" if found.spread.mean > 0 else "bad",
    )


def _figure(experiment: Experiment) -> Figure | None:
    key = experiment.score
    rows = []
    for arm in experiment.arms:
        score = arm.spread(key)
        if score is not None:
            values = tuple(arm.by_seed(key).values())
            rows.append(Dots(arm.label, arm.number, values, score.mean))
    if len(rows) < 2:
        return None
    control = experiment.control
    level = control.spread(key) if control else None
    teacher = next((t.get("top1") for run in experiment.runs for t in teachers_of(run)), None)
    if key != "top1":
        teacher = None
    told = "; ".join(f"{row.label} {row.mean:.2f} (n = {len(row.values)})" for row in rows)
    above = f" The dotted line is the teacher, {teacher:.2f}." if teacher is not None else ""
    what = "top-1" if key == "top1" else "agreement with the teacher"
    return Figure(
        f"Held-out {what} of every run, %",
        f"Means: {told}.{above}",
        dot_chart(rows, x="", control=level.mean if level else None, teacher=teacher),
    )


def _hint(experiment: Experiment) -> tuple[str, str]:
    labelled = experiment.runs[0].recipe["data"].get("labels", True)
    if experiment.control is not None or not labelled:
        return "", ""
    run = experiment.runs[0]
    recipe, out = quote(str(run.path / "recipe.toml")), quote(f"{run.path}_control")
    command = f"anykd distill {recipe} --method control --out {out}"
    return "Without a control nobody can say what distillation gave. This trains one:", command
