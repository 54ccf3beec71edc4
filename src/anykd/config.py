"""The base of every table of a recipe, and what is said when a table is wrong."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

from anykd.errors import RecipeError, nearest

__all__ = ["FrozenConfig", "recipe_error"]


class FrozenConfig(BaseModel):
    """Immutable settings; an unknown key is an error, and a field's docstring its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def recipe_error(
    error: ValidationError, *, table: str, known: Iterable[str], depth: int = 1, source: str = ""
) -> RecipeError:
    """Put the first of pydantic's complaints into one line.

    Args:
        error: What pydantic raised for a table of settings.
        table: Name of that table; empty at the top of a recipe.
        known: Keys that the table has.
        depth: How many parts of the error's place are keys; behind them stand the branches of a
            union of types, which mean nothing to a user.
        source: The file that was read, or empty.
    """
    first = error.errors()[0]
    path = ".".join(str(part) for part in (table, *first["loc"][:depth]) if str(part))
    where = f"{source}: " if source else ""
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        return RecipeError(f"{where}{path} is no setting", hint=nearest(key, known))
    if first["type"] == "model_type":
        return RecipeError(
            f"{where}{path} is no table, got {first.get('input')!r}",
            hint=f"set one of its keys, such as --set {path}.KEY=VALUE",
        )
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = first.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) else ""
    return RecipeError(f"{where}{path}: {message}{shown}")
