"""From what a person asks of a cache to the recipe of it."""

from pathlib import Path
from typing import Any

from anykd.errors import RecipeError
from anykd.experiment.request import read_values
from anykd.recipe import Recipe, TeacherConfig

__all__ = ["cache_recipe"]


def cache_recipe(
    path: Path | None,
    flags: dict[str, Any],
    overrides: list[str],
    *,
    out: Path | None,
    number: int,
) -> tuple[Recipe, Path]:
    """Put together what a cache is built from. It needs no student, and no method.

    Args:
        path: A recipe; None starts from nothing.
        flags: Dotted keys and their values; None is not given.
        overrides: Such as ``augment.preset=vit``.
        out: The folder; None takes the ``cache`` of the recipe's teacher.
        number: Of the teacher, counted from 1.

    Returns:
        The recipe and the folder. Where no student is given, it is the teacher itself.

    Raises:
        RecipeError: If something is wrong or missing.
    """
    values = read_values(path, flags, overrides)
    for table, flag in (("teacher", "--teacher"), ("data", "--data")):
        if table not in values:
            raise RecipeError(f"no {table} is given", hint=f"give {flag}, or [{table}] in a recipe")
    teachers = values["teacher"] if isinstance(values["teacher"], list) else [values["teacher"]]
    if not 1 <= number <= len(teachers):
        raise RecipeError(
            f"teacher {number} is asked for, and the recipe has {len(teachers)}",
            hint="--number is counted from 1",
        )
    chosen = teachers[number - 1]
    if "student" not in values and isinstance(chosen, dict) and "name" in chosen:
        known = {key: chosen[key] for key in TeacherConfig.model_fields if key in chosen}
        itself = TeacherConfig.model_validate(known).as_student()
        values["student"] = itself.model_dump(mode="json", exclude_none=True)
    recipe = Recipe.from_dict(values, source="" if path is None else str(path))
    stored = recipe.teachers[number - 1].cache
    if out is None and stored is None:
        raise RecipeError("no folder is given", hint="give --out DIR, or cache in [teacher]")
    return recipe, out or Path(str(stored))
