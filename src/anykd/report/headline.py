"""The first thing a reader asks: what did distillation give, and what did the student save."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

from anykd.units import amount, duration

from .arms import Arm, Experiment, teachers_of
from .figures.dots import Dots, dot_chart
from .figures.svg import TEACHER
from .gain import Gain
from .parts import Cell, Figure, Key, Table
from .seeds import Spread, spread

__all__ = ["Headline", "Tile", "headline", "overview"]

_WHAT = {"top1": "top-1", "agreement": "agreement with the teacher"}
_FAR = 2.0
"""A teacher farther away than so many times the width of all dots would press them together."""


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


def overview(experiments: Sequence[Experiment], titles: Sequence[str]) -> Table:
    """The best arm of each of several experiments, a row for each."""
    rows = []
    for experiment, title in zip(experiments, titles, strict=True):
        best = _best(experiment)
        score = best.spread(experiment.score) if best else None
        teacher = next((t["name"] for run in experiment.runs for t in teachers_of(run)), "")
        rows.append(
            (
                Cell(title),
                Cell(teacher),
                Cell(best.label if best else ""),
                Cell(score.text() if score else "unfinished", tone="strong"),
                Cell(str(score.n) if score else ""),
                _gain_cell(experiment.gain(best)) if best else Cell(""),
            )
        )
    columns = ("student", "teacher", "best method", "score, %", "n", "gain over control, points")
    return Table("The best method of each student.", columns, tuple(rows))


def _best(experiment: Experiment) -> Arm | None:
    """The arm with the highest mean among those that a teacher had a part in."""
    scored = [arm for arm in experiment.arms if arm.finished and arm.spread(experiment.score)]
    return next((arm for arm in scored if not arm.is_control), scored[0] if scored else None)


def _sentence(experiment: Experiment, best: Arm | None) -> str:
    who = f"{experiment.student} on {experiment.data_name}"
    if best is None:
        begun = max((len(run.epochs) for run in experiment.runs), default=0)
        return f"{who}: no run has come to its end; {begun} evaluations so far."
    score = best.spread(experiment.score)
    assert score is not None
    reached = f"{score.text()} % {_WHAT[experiment.score]} (n = {score.n})"
    gained = experiment.gain(best)
    if best.is_control:
        return f"{who}, trained with labels alone, reaches {reached}."
    taught = sum(not arm.is_control and bool(arm.finished) for arm in experiment.arms)
    of = f", the best of {taught} ways," if taught > 1 else ""
    said = f"{who}, taught with {best.label}{of or ','} reaches {reached}"
    return f"{said}: {_gain_in_words(gained)}." if gained else f"{said}."


def _gain_in_words(found: Gain) -> str:
    points = f"{abs(found.mean):.2f}"
    side = "above" if found.mean >= 0 else "below"
    if float(points) == 0 and found.half_width is None:
        return f"level with the control (n = {found.n}), which proves nothing yet"
    if not found.paired:
        return f"{points} points {side} the control, of other seeds, so not compared pair by pair"
    if found.std is None:
        return f"{points} points {side} the control with one seed, which proves nothing yet"
    said = f"{points} ± {found.std:.2f} points {side} the control over {found.n} paired seeds"
    if found.half_width is None:
        return f"{said}, too few to be sure"
    if _within_noise(found):
        return f"{said}, which is within the noise of the seeds"
    return f"{said}, more than the noise of the seeds"


def _within_noise(found: Gain) -> bool:
    return found.half_width is not None and abs(found.mean) <= found.half_width


def _tiles(experiment: Experiment, best: Arm | None) -> Iterator[Tile]:
    score = best.spread(experiment.score) if best else None
    if best is not None and score is not None:
        yield Tile(
            f"{score.mean:.2f}",
            "%",
            f"{_WHAT[experiment.score]}, {best.label}",
            _with_n(score.std, score.n),
        )
        gained = experiment.gain(best)
        if gained is not None:
            note = "paired" if gained.paired else "not paired"
            verdict = ", within noise" if _within_noise(gained) else ""
            told = f"{_with_n(gained.std, gained.n)}, {note}{verdict}"
            yield Tile(
                Spread(gained.mean, None, 1).text("+.2f"),
                "points",
                "gain over the control",
                told,
            )
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
    columns = ["", f"{_WHAT[score]}, %", "n", "gain, points", "agreement, %", "ECE"]
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
        named = [teacher["name"], *([where] if where not in ("", teacher["name"]) else [])]
        first = Cell("teacher", arm=-1, note=", ".join(named))
        ece = spread(
            model.get("ece")
            for run in experiment.runs
            for model in run.analysis.get("teachers", [])[:1]
            if model["name"] == teacher["name"]
        )
        calibration = Cell(format(ece.mean, ".3f") if ece else "")
        yield (first, Cell(shown), Cell(""), Cell(""), Cell(""), calibration)


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
    return (
        Cell(arm.label, arm=arm.number, note="; ".join(notes)),
        shown,
        Cell(str(score.n if score else 0)),
        _gain_cell(experiment.gain(arm)),
        Cell(agreement.text() if agreement else ""),
        Cell(ece.text(".3f") if ece else ""),
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
    shown = Spread(found.mean, found.std, found.n).text("+.2f")
    if not found.paired:
        return Cell(shown, note="no seed in common")
    if found.n == 1:
        return Cell(shown, note="one seed proves nothing")
    if found.half_width is None:
        return Cell(shown, note=f"n = {found.n}, too few to be sure")
    if _within_noise(found):
        return Cell(shown, note=f"within noise, n = {found.n}")
    tone = "good" if found.mean > 0 else "bad"
    return Cell(shown, note=f"95 %: ± {found.half_width:.2f}, n = {found.n}", tone=tone)


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
    above = f" The teacher: {teacher:.2f}." if teacher is not None else ""
    title = f"Held-out {_WHAT[key]} of every run, %"
    keys = [Key("mean of the control", 0)] if level else []
    if teacher is not None:
        every = [value for row in rows for value in row.values]
        if abs(teacher - every[0]) > _FAR * (max(every) - min(every)):
            title, teacher = f"{title} (the teacher's {teacher:.2f} lies outside)", None
        else:
            keys.append(Key("teacher", TEACHER))
    chart = dot_chart(rows, control=level.mean if level else None, teacher=teacher)
    return Figure(title, f"Means: {told}.{above}", chart, tuple(keys))


def _hint(experiment: Experiment) -> tuple[str, str]:
    labelled = experiment.runs[0].recipe["data"].get("labels", True)
    if experiment.control is not None or not labelled:
        return "", ""
    run = experiment.runs[0]
    recipe, out = quote(str(run.path / "recipe.toml")), quote(f"{run.path}_control")
    command = f"anykd distill {recipe} --method control --out {out}"
    return "Without a control nobody can say what distillation gave. This trains one:", command
