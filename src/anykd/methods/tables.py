"""From the ``[method]`` tables of a recipe to a method."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from anykd.config import FrozenConfig, recipe_error
from anykd.errors import RecipeError
from anykd.models import FrozenTeacher, StagedModel

from .base import Method, MethodConfig
from .combination import Combination, Part
from .registry import method_class

__all__ = ["MethodTable", "Place", "build_methods", "complete_tables", "read_tables"]


class Place(FrozenConfig):
    """What a ``[[method]]`` table holds beside the fields of its method."""

    weight: PositiveFloat = 1.0
    """Factor on each of the method's terms, but not on the task term, which all share."""
    teachers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Which of the ``[[teacher]]`` tables it learns from, counted from 1; None learns from all."""


@dataclass(frozen=True)
class MethodTable:
    """One ``[[method]]`` table, checked.

    Attributes:
        name: A key of ``METHODS``.
        config: The fields of its ``Config``.
        place: Its weight and its teachers.
    """

    name: str
    config: MethodConfig
    place: Place

    @property
    def method(self) -> type[Method]:
        """The class of that name."""
        return method_class(self.name)

    def teaches(self, number: int) -> bool:
        """Whether the teacher of a number, counted from 1, is one of its own."""
        return self.method.needs_teacher and (
            self.place.teachers is None or number in self.place.teachers
        )


def read_tables(tables: Sequence[Any], *, source: str = "") -> tuple[MethodTable, ...]:
    """Check ``[method]`` tables and fill in the defaults.

    Args:
        tables: ``name``, ``weight``, ``teachers`` and the fields of the method's ``Config``.
        source: The file they come from, for messages.

    Raises:
        RecipeError: If a name or a key is unknown, a value does not fit, or two methods want
            different weights for the task term that they share.
    """
    if not tables:
        raise RecipeError("no method is given", hint='such as [method] with name = "ofa"')
    read = tuple(
        _read(table, "method" if len(tables) == 1 else f"method.{number}", source)
        for number, table in enumerate(tables, start=1)
    )
    where = f"{source}: " if source else ""
    for table in read:
        if not table.method.needs_teacher and (len(read) > 1 or table.place != Place()):
            raise RecipeError(
                f"{where}{table.name} learns from labels alone: it stands by itself, without "
                "weight or teachers",
                hint="task_weight is the weight of the labels in every method",
            )
    return _with_one_task_weight(read, where)


def _read(table: Any, path: str, source: str) -> MethodTable:
    where = f"{source}: " if source else ""
    if not isinstance(table, dict):
        raise RecipeError(
            f"{where}{path} is no table, got {table!r}", hint="such as --set method.name=ofa"
        )
    if not isinstance(table.get("name"), str):
        raise RecipeError(f"{where}[{path}] needs a name", hint='such as name = "ofa"')
    config: type[MethodConfig] = method_class(table["name"]).Config
    placed = {key: value for key, value in table.items() if key in Place.model_fields}
    fields = {key: value for key, value in table.items() if key not in placed and key != "name"}
    known = [*config.model_fields, *Place.model_fields]
    try:
        return MethodTable(table["name"], config(**fields), Place(**placed))
    except ValidationError as error:
        raise recipe_error(error, table=path, known=known, source=source) from None


def _with_one_task_weight(tables: tuple[MethodTable, ...], where: str) -> tuple[MethodTable, ...]:
    """Give all methods the weight of the task term that some of them ask for."""
    asked = {
        table.config.task_weight
        for table in tables
        if "task_weight" in table.config.model_fields_set
    }
    if len(asked) > 1:
        raise RecipeError(
            f"{where}the methods share one task term, but their task_weight are "
            f"{' and '.join(str(weight) for weight in sorted(asked))}",
            hint="give it once, or the same to all",
        )
    if not asked:
        return tables
    update = {"task_weight": asked.pop()}
    return tuple(
        MethodTable(table.name, table.config.model_copy(update=update), table.place)
        for table in tables
    )


def complete_tables(tables: tuple[MethodTable, ...]) -> list[dict[str, Any]]:
    """Write checked tables out, every default filled in; reading them gives the same tables."""
    return [
        {"name": table.name}
        | table.place.model_dump(mode="json", exclude_none=True, exclude_defaults=len(tables) == 1)
        | table.config.model_dump(mode="json", exclude_none=True)
        for table in tables
    ]


def build_methods(
    tables: tuple[MethodTable, ...],
    student: StagedModel,
    teachers: Sequence[tuple[FrozenTeacher, float]] = (),
) -> Method:
    """Make what one or several tables describe, for one or several teachers.

    Each method learns from each of its teachers, and all terms are added.

    Args:
        tables: From `read_tables`.
        student: The model that is trained.
        teachers: Each with the factor on the terms that learn from it.

    Raises:
        RecipeError: If a table names a teacher that is not there, or a teacher does not fit.
        ModelError: If a method needs something that a model cannot do.
    """
    first = tables[0]
    plain = len(tables) == 1 and first.place.weight == 1
    if plain and not first.method.needs_teacher:
        return first.method(student, None, first.config)
    if plain and len(teachers) <= 1 and all(weight == 1 for _, weight in teachers):
        _require_teachers(first, len(teachers))
        return first.method(student, teachers[0][0] if teachers else None, first.config)
    for number in range(1, len(teachers) + 1):
        if not any(table.teaches(number) for table in tables):
            raise RecipeError(
                f"no method learns from teacher {number}", hint="remove it, or change `teachers`"
            )
    parts = [
        part
        for table, suffix in zip(tables, _suffixes(tables), strict=True)
        for part in _parts(table, student, teachers, suffix)
    ]
    return Combination(student, parts, task_weight=first.config.task_weight)


def _parts(
    table: MethodTable,
    student: StagedModel,
    teachers: Sequence[tuple[FrozenTeacher, float]],
    suffix: str,
) -> list[Part]:
    """One method for each of its teachers."""
    _require_teachers(table, len(teachers))
    if not teachers:
        table.method(student, None, table.config)  # says what is missing
    return [
        Part(
            table.method(student, teacher, table.config),
            table.place.weight * weight,
            suffix + (f"_teacher{number}" if len(teachers) > 1 else ""),
        )
        for number, (teacher, weight) in enumerate(teachers, start=1)
        if table.teaches(number)
    ]


def _require_teachers(table: MethodTable, count: int) -> None:
    """Refuse the number of a teacher that is not there."""
    missing = [number for number in table.place.teachers or () if number > count]
    if missing:
        raise RecipeError(
            f"{table.name} wants to learn from teacher {missing[0]}, and there are {count}",
            hint="teachers are counted from 1",
        )


def _suffixes(tables: tuple[MethodTable, ...]) -> list[str]:
    """Tell the terms of a method from those of its second use in the same recipe."""
    total = Counter(table.name for table in tables)
    seen: Counter[str] = Counter()
    suffixes = []
    for table in tables:
        seen[table.name] += 1
        suffixes.append(f"_{seen[table.name]}" if total[table.name] > 1 else "")
    return suffixes
