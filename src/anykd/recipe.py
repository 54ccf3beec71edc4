"""The recipe: one TOML file, one object, one experiment."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from anykd.config import FrozenConfig, recipe_error
from anykd.data import AugmentConfig, DataConfig
from anykd.engine import TrainConfig
from anykd.errors import RecipeError, nearest
from anykd.methods import MethodTable, complete_tables, method_class, read_tables

__all__ = ["ModelConfig", "Recipe", "TeacherConfig", "apply_overrides", "find_key", "read_toml"]

ImageSize = PositiveInt | tuple[PositiveInt, PositiveInt]


class ModelConfig(FrozenConfig):
    """The ``[student]`` table: a model by name."""

    name: str
    """A timm architecture, ``hf-hub:NAME``, or a run directory."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed on to ``timm.create_model``, such as ``patch_size = 4``."""
    image_size: ImageSize | None = None
    """Pixels that this model sees; None takes the recipe's, then the model's own."""
    pretrained: bool = False
    """Start from the weights that belong to the name."""
    weights: str | None = None
    """Start from the weights of this file."""


class TeacherConfig(FrozenConfig):
    """The ``[teacher]`` table: a model with weights."""

    name: str
    """A timm architecture with pretrained weights, ``hf-hub:NAME``, or a run directory."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed on to ``timm.create_model``."""
    image_size: ImageSize | None = None
    """Pixels that this model sees; None takes the recipe's, or a run directory's own."""
    weights: str | None = None
    """Take the weights of this file instead of those that belong to the name."""
    weight: PositiveFloat = 1.0
    """Factor on the terms that learn from this teacher."""


class Recipe(FrozenConfig):
    """Everything that makes an experiment, with every default filled in."""

    seed: NonNegativeInt = 0
    """Of every random choice but the split of the data."""
    image_size: ImageSize | None = None
    """Pixels that the models see; None takes each model's own."""
    student: ModelConfig
    """The model that is trained."""
    teachers: tuple[TeacherConfig, ...] = Field(default=(), alias="teacher")
    """``[teacher]`` or several ``[[teacher]]``: the models that teach; none for the control arm and
    for ``anykd train``."""
    methods: tuple[dict[str, Any], ...] = Field(alias="method")
    """``[method]`` or several ``[[method]]``: ``name``, the fields of its ``Config``, and where
    there are several also ``weight`` and ``teachers``."""
    data: DataConfig
    """What is learnt from."""
    augment: AugmentConfig = AugmentConfig()
    """How images are varied in training."""
    train: TrainConfig = TrainConfig()
    """How long, how fast and in which precision to train."""

    @property
    def method_tables(self) -> tuple[MethodTable, ...]:
        """The methods, checked."""
        return read_tables(self.methods)

    @property
    def method_name(self) -> str:
        """Which method, or which several, such as ``ofa+fitnet``."""
        return "+".join(table["name"] for table in self.methods)

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "") -> "Recipe":
        """Check a recipe's values and fill in the defaults.

        Args:
            values: Nested tables, as read from TOML.
            source: The file they come from, for messages.

        Raises:
            RecipeError: If a key is unknown, a value does not fit, or something is missing.
        """
        values = dict(values)
        methods = _tables(values.get("method", {"name": "control"}))
        values["method"] = complete_tables(read_tables(methods, source=source))
        values["teacher"] = _read_teachers(_tables(values.get("teacher") or []), source)
        try:
            return cls(**values)
        except ValidationError as error:
            location = error.errors()[0]["loc"]
            field = cls.model_fields.get(str(location[0]))
            table = None if field is None else _table_of(field.annotation)
            known = _keys() if table is None else table.model_fields
            raise recipe_error(
                error, table="", known=known, depth=2 if table else 1, source=source
            ) from None

    def to_toml(self) -> str:
        """Write the recipe as TOML; reading it gives the same recipe."""
        values = self.model_dump(mode="json", exclude_none=True, by_alias=True)
        for key in ("teacher", "method"):
            tables = values.pop(key)
            if tables:
                values[key] = tables if len(tables) > 1 else tables[0]
        return tomli_w.dumps(values)


def _keys() -> list[str]:
    """The tables and keys of a recipe, as they are written."""
    return [field.alias or key for key, field in Recipe.model_fields.items()]


def _tables(value: Any) -> list[Any]:
    """``[table]`` is one, ``[[table]]`` are several."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _read_teachers(tables: list[Any], source: str) -> tuple[TeacherConfig, ...]:
    teachers = []
    for number, table in enumerate(tables, start=1):
        path = "teacher" if len(tables) == 1 else f"teacher.{number}"
        try:
            teachers.append(TeacherConfig.model_validate(table))
        except ValidationError as error:
            known = TeacherConfig.model_fields
            raise recipe_error(error, table=path, known=known, source=source) from None
    return tuple(teachers)


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """The config class inside an annotation such as ``TeacherConfig | None``."""
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a recipe's file.

    Raises:
        RecipeError: If there is none, or it is no TOML.
    """
    if not path.is_file():
        folder = path.parent
        siblings = [p.name for p in folder.glob("*.toml")] if folder.is_dir() else []
        raise RecipeError(f"no recipe at {path}", hint=nearest(path.name, siblings, or_list=False))
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no TOML: {error}") from None


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Replace single values of a recipe.

    Args:
        values: Nested tables; not changed.
        overrides: Such as ``train.epochs=1`` or ``student.name=resnet18``.

    Raises:
        RecipeError: If an override has no ``=`` or goes into something that is no table.
    """
    for override in overrides:
        path, sign, text = override.partition("=")
        if not sign or not path.strip():
            raise RecipeError(f"--set {override!r} has no value", hint="such as train.epochs=1")
        values = _replaced(values, path.strip().split("."), _parse_value(text.strip()), override)
    return values


def _replaced(table: dict[str, Any], path: list[str], value: Any, override: str) -> dict[str, Any]:
    key, *rest = path
    if not rest:
        return table | {key: value}
    inner = table.get(key, {})
    if isinstance(inner, list) and inner and all(isinstance(part, dict) for part in inner):
        return table | {key: _replaced_in_list(inner, key, rest, value, override)}
    if not isinstance(inner, dict):
        raise RecipeError(f"--set {override!r}: {key} is no table")
    return table | {key: _replaced(inner, rest, value, override)}


def _replaced_in_list(
    tables: list[Any], key: str, path: list[str], value: Any, override: str
) -> list[Any]:
    """Replace a value in one of several tables, which are counted from 1."""
    number, *rest = path
    if not number.isdigit() or not 1 <= int(number) <= len(tables) or not rest:
        raise RecipeError(
            f"--set {override!r}: there are {len(tables)} [[{key}]] tables",
            hint=f"say which one, such as {key}.1.{'name' if path[-1].isdigit() else path[-1]}",
        )
    changed = _replaced(tables[int(number) - 1], rest, value, override)
    return [*tables[: int(number) - 1], changed, *tables[int(number) :]]


def _parse_value(text: str) -> Any:
    """A TOML value; bare words are strings, so that names need no quotes in a shell."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def find_key(name: str, *, method: str | None) -> str:
    """Find the table that a short name such as ``epochs`` belongs to.

    Args:
        name: A key of the recipe, of one of its tables, or of the method's config.
        method: Whose config counts; None where there are several methods.

    Returns:
        The dotted path, such as ``train.epochs``.

    Raises:
        RecipeError: If no table has such a key, or several have.
    """
    if name in _keys():
        return name
    tables: dict[str, type[BaseModel]] = {
        "train": TrainConfig,
        "data": DataConfig,
        "augment": AugmentConfig,
    }
    if method is not None:
        tables["method"] = method_class(method).Config
    found = [f"{table}.{name}" for table, config in tables.items() if name in config.model_fields]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(f"{name} may mean {' or '.join(found)}", hint="give the whole table")
    known = [key for config in tables.values() for key in config.model_fields]
    raise RecipeError(f"no setting is called {name!r}", hint=nearest(name, known))
