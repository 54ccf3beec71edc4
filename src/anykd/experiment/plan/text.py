"""A plan laid out for a person: tables that fit the terminal, plain where it is no terminal."""

import io
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from anykd.methods.joins import Join
from anykd.units import amount, shape

from .facts import facts_table
from .finding import Finding
from .models import ModelFacts

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["short_text", "whole_text"]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def whole_text(plan: "Plan", *, width: int, color: bool) -> str:
    """Lay out everything that a plan holds.

    Args:
        plan: The plan.
        width: Columns at most.
        color: Whether to mark headings and severities by colour.
    """
    parts: list[RenderableType] = []
    if plan.models:
        parts += [_headline(plan), "", _models(plan.models), ""]
        parts += [*_class_maps(plan.models, most=12), _stages(plan), ""]
        parts += [facts_table(plan), ""]
    parts += _findings(plan.findings)
    return _render(parts, width=width, color=color)


def short_text(plan: "Plan", *, width: int) -> str:
    """Lay out who teaches what, and where they meet."""
    parts: list[RenderableType] = [_headline(plan)]
    if len(plan.models) > 1:
        parts += [*_class_maps(plan.models, most=4), _stages(plan)]
    return _render(parts, width=width, color=False)


def _render(parts: list[RenderableType], *, width: int, color: bool) -> str:
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
    )
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)
    lines = (line.rstrip() for line in file.getvalue().splitlines())
    return "\n".join(lines).rstrip("\n")


def _headline(plan: "Plan") -> Text:
    student, *teachers = plan.models
    text = Text(f"{student.source} ({_in_brief(student)})")
    if teachers:
        taught = " and ".join(f"{t.source} ({_in_brief(t)})" for t in teachers)
        text.append(f" learns from {taught} by {plan.method}")
    else:
        text.append(f" learns from labels ({plan.method})")
    images, classes = plan.data["train_images"], plan.data["classes"]
    of = f" of {classes} classes" if classes else " without labels"
    return text.append(f", on {images:,} images{of} ({plan.data['source']})")


def _in_brief(model: ModelFacts) -> str:
    return f"{model.kind}, {amount(model.parameters)}"


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", header_style="bold")
    return table


def _models(models: tuple[ModelFacts, ...]) -> Table:
    table = _table("", *(model.role for model in models))
    rows = {
        "model": [model.name for model in models],
        "weights": [model.weights for model in models],
        "kind": [model.kind for model in models],
        "parameters": [amount(model.parameters) for model in models],
        "FLOPs an image": [amount(model.flops) for model in models],
        "input": [f"{shape(model.image_size)}, {model.interpolation}" for model in models],
        "mean": [_channels(model.mean) for model in models],
        "std": [_channels(model.std) for model in models],
        "licence": [model.license or "not named" for model in models],
        "classes": [model.classes for model in models],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _class_maps(models: tuple[ModelFacts, ...], *, most: int) -> Iterator[RenderableType]:
    """Which of a teacher's classes are taken for the data's; as many as fit."""
    for model in models:
        if not model.class_map:
            continue
        rows = [
            f"{name} ← {index}{f' {own}' if own else ''}"
            for name, index, own in model.class_map[:most]
        ]
        more = len(model.class_map) - most
        rows += [f"and {more} more, which --json shows"] if more > 0 else []
        yield Text(f"{model.role}'s classes: {'; '.join(rows)}\n")


def _channels(channels: tuple[float, ...]) -> str:
    shown = [f"{value:.4g}" for value in channels]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def _stages(plan: "Plan") -> Table:
    """Every stage with what joins it; those that nothing joins stand there too."""
    table = _table("stage", "student", "teacher", "joined by", "parameters", right=("parameters",))
    for column, least in zip(table.columns, (5, 7, 7, 20, 10), strict=True):
        column.min_width = least
    for joins in _by_place(plan):
        for number, join in enumerate(joins):
            held = amount(join.parameters) if join.parameters else ""
            place = str(join.place) if not number else ""
            how = f"{join.part}: {join.how}" if join.part else join.how
            met = shape(join.teacher)
            if join.target != join.place:
                met += f" ({join.target})"
            table.add_row(place, shape(join.student), met, how, held)
    return table


def _by_place(plan: "Plan") -> Iterator[list[Join]]:
    student, *teachers = plan.models
    teacher = teachers[0] if len(teachers) == 1 else None
    by_place = {
        place: list(joins)
        for place, joins in itertools.groupby(
            sorted(plan.joins, key=lambda join: str(join.place)), key=lambda join: join.place
        )
    }
    for place in (1, 2, 3, 4, "stages", "pooled", "logits"):
        if place in by_place:
            yield by_place[place]
        elif place != "stages":
            own = _shape_at(student, place)
            other = () if teacher is None else _shape_at(teacher, place)
            yield [Join(place, "", own, other, place)]


def _shape_at(model: ModelFacts, place: int | str) -> tuple[int, ...]:
    if isinstance(place, int):
        return model.shapes[place - 1]
    return (model.width,) if place == "pooled" else (model.num_classes,)


def _findings(findings: tuple[Finding, ...]) -> Iterator[RenderableType]:
    if not findings:
        yield "findings: none"
        return
    for finding in findings:
        head = Text(f"{finding.severity}: ", style=_STYLES[finding.severity])
        yield head.append(f"{finding.message} [{finding.code}]", style="not bold default")
        if finding.remedy:
            yield Padding(Text(f"hint: {finding.remedy}"), (0, 0, 0, 2))
