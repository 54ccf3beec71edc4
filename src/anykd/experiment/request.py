"""From what a person asks for, in Python or on the command line, to a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anykd.errors import RecipeError
from anykd.recipe import Recipe, apply_overrides, find_key, read_toml
from anykd.rundir import RunDir

from .plan import Plan, make_plan
from .run import Result, run

__all__ = ["distill", "load_recipe", "plan", "read_values"]


def distill(
    *,
    student: str | Path | dict[str, Any],
    data: str | Path,
    teacher: str | Path | dict[str, Any] | Sequence[str | Path | dict[str, Any]] | None = None,
    method: str | dict[str, Any] | Sequence[str | dict[str, Any]] = "ofa",
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    **options: Any,
) -> Result:
    """Train a student from a teacher.

    ``distill(teacher="runs/teacher", student="resnet18", data="./my_images", method="fbt")``

    Args:
        student: A timm architecture, ``hf-hub:NAME`` or a run directory; or the whole table, such
            as ``{"name": "resnet18", "pretrained": True}``.
        data: A data spec, such as ``digits``, ``cifar100:ROOT`` or a folder of class folders.
        teacher: Like ``student``, with weights; the method ``control`` needs none. A list gives
            several; their tables may have a ``weight``.
        method: Name of a method, or of several, such as ``ofa+fitnet``; or a list of names and
            tables, such as ``["ofa", {"name": "fitnet", "weight": 0.5}]``.
        out: The run directory; None makes a name in ``runs/``.
        resume: Continue the run in ``out``.
        force: Train in spite of errors that the plan finds.
        **options: Settings of the recipe: a whole table (``train={"epochs": 5}``), or one key by
            itself (``epochs=5, seed=1, temperature=4``).

    Raises:
        AnykdError: If something given does not fit; the message says what would do.
    """
    recipe = _requested(student, data, teacher, method, options)
    return run(recipe, out, resume=resume, force=force)


def plan(
    *,
    student: str | Path | dict[str, Any],
    data: str | Path,
    teacher: str | Path | dict[str, Any] | Sequence[str | Path | dict[str, Any]] | None = None,
    method: str | dict[str, Any] | Sequence[str | dict[str, Any]] = "ofa",
    steps: int = 5,
    **options: Any,
) -> Plan:
    """Look at what `distill` would do, and measure what it would cost, without training.

    ``print(plan(teacher="runs/teacher", student="resnet18", data="./my_images").text())``

    Args:
        student: As for `distill`.
        data: As for `distill`.
        teacher: As for `distill`.
        method: As for `distill`.
        steps: Optimiser steps to measure, at most; 0 measures nothing.
        **options: Settings of the recipe, as for `distill`.

    Raises:
        RecipeError: If a setting is wrong. What cannot be put together is an error of the plan.
    """
    return make_plan(_requested(student, data, teacher, method, options), steps=steps)


def _requested(
    student: str | Path | dict[str, Any],
    data: str | Path,
    teacher: Any,
    method: str | dict[str, Any] | Sequence[str | dict[str, Any]],
    options: dict[str, Any],
) -> Recipe:
    """The recipe that a call asks for."""
    values: dict[str, Any] = {
        "student": _model_table(student),
        "data": {"source": str(data)},
        "method": _tables(method.split("+") if isinstance(method, str) else method),
    }
    if teacher is not None:
        values["teacher"] = _tables(teacher)
    only = method if isinstance(method, str) and "+" not in method else None
    for name, value in options.items():
        table, _, key = find_key(name, method=only).partition(".")
        new = {key: value} if key else value
        values[table] = values.get(table, {}) | new if isinstance(new, dict) else new
    return Recipe.from_dict(values)


def _model_table(model: str | Path | dict[str, Any]) -> dict[str, Any]:
    return model if isinstance(model, dict) else {"name": str(model)}


def _tables(given: Any) -> Any:
    """The table of one name, or of each of several names and tables."""
    several = [given] if isinstance(given, str | Path | dict) else list(given)
    tables = [_model_table(one) for one in several]
    return tables if len(tables) != 1 else tables[0]


def load_recipe(
    path: Path | None,
    flags: dict[str, Any],
    overrides: list[str],
    *,
    resume_from: Path | None = None,
) -> Recipe:
    """Put a recipe together from a file, flags and single values.

    Args:
        path: The file; None starts from nothing.
        flags: Dotted keys and their values, such as ``train.epochs``; None is not given. A list
            of names makes as many tables.
        overrides: Such as ``train.epochs=1``.
        resume_from: A run directory, whose own recipe is taken where no file is given. One that
            holds no run yet is begun, so that one command line does for both.

    Raises:
        RecipeError: If something is wrong or missing.
        CheckpointError: If ``resume_from`` holds nothing to continue.
    """
    if path is None and resume_from is not None:
        directory = RunDir(resume_from)
        tells_what = flags.get("student.name") and flags.get("data.source")
        if directory.recipe.is_file() or not tells_what:
            directory.require_unfinished()
            path = directory.recipe
    values = read_values(path, flags, overrides)
    for table, flag in (("student", "--student (or --model)"), ("data", "--data")):
        if table not in values:
            raise RecipeError(f"no {table} is given", hint=f"give {flag}, or [{table}] in a recipe")
    return Recipe.from_dict(values, source=str(path) if path is not None else "")


def read_values(path: Path | None, flags: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Put the tables of a recipe together, which need not be complete.

    Args:
        path: The file; None starts from nothing.
        flags: As for `load_recipe`, like the rest.
        overrides: Such as ``train.epochs=1``.

    Raises:
        RecipeError: If something is wrong.
    """
    values = read_toml(path) if path is not None else {}
    for key, value in flags.items():
        if value is not None:
            values = _with_flag(values, key, value)
    return apply_overrides(values, overrides)


def _with_flag(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    table, _, name = key.partition(".")
    if not name:
        return values | {table: value}
    if isinstance(value, list):
        if len(value) > 1:
            return values | {table: _tables(value)}
        value = value[0]
    old = values.get(table, {})
    if isinstance(old, list):
        if name != "name":  # of each of several
            return values | {table: [_with_flag({table: one}, key, value)[table] for one in old]}
        old = {}  # one model or method instead of several
    if not isinstance(old, dict):
        raise RecipeError(
            f"{table} is no table, got {old!r}", hint=f"write [{table}] above its keys"
        )
    if name == "name" and old.get("name") != value:
        old = {}  # another model or method does not take over the first one's options
    return values | {table: old | {name: value}}
