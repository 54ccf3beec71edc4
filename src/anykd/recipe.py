"""The recipe: one TOML file, one object, one experiment."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from anykd.config import FrozenConfig, recipe_error
from anykd.data import AugmentConfig, DataConfig
from anykd.engine import TrainConfig
from anykd.errors import RecipeError, nearest
from anykd.methods import MethodConfig, method_class

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


class Recipe(FrozenConfig):
    """Everything that makes an experiment, with every default filled in."""

    seed: NonNegativeInt = 0
    """Of every random choice but the split of the data."""
    image_size: ImageSize | None = None
    """Pixels that the models see; None takes each model's own."""
    student: ModelConfig
    """The model that is trained."""
    teacher: TeacherConfig | None = None
    """The model that teaches; none for the control arm and for ``anykd train``."""
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "control"})
    """``name`` of a method, and the fields of its ``Config``."""
    data: DataConfig
    """What is learnt from."""
    augment: AugmentConfig = AugmentConfig()
    """How images are varied in training."""
    train: TrainConfig = TrainConfig()
    """How long, how fast and in which precision to train."""

    @property
    def method_name(self) -> str:
        """Which method."""
        return self.method["name"]

    @property
    def method_options(self) -> dict[str, Any]:
        """The fields of its ``Config``."""
        return {key: value for key, value in self.method.items() if key != "name"}

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
        values["method"] = _complete_method(values.get("method", {"name": "control"}), source)
        try:
            return cls(**values)
        except ValidationError as error:
            location = error.errors()[0]["loc"]
            field = cls.model_fields.get(str(location[0]))
            table = None if field is None else _table_of(field.annotation)
            known = (table or cls).model_fields
            raise recipe_error(
                error, table="", known=known, depth=2 if table else 1, source=source
            ) from None

    def to_toml(self) -> str:
        """Write the recipe as TOML; reading it gives the same recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _complete_method(table: Any, source: str) -> dict[str, Any]:
    """A ``[method]`` table with every field of the method's config filled in."""
    where = f"{source}: " if source else ""
    if not isinstance(table, dict):
        raise RecipeError(
            f"{where}method is no table, got {table!r}", hint="such as --set method.name=ofa"
        )
    if not isinstance(table.get("name"), str):
        raise RecipeError(f"{where}[method] needs a name", hint='such as name = "ofa"')
    name = table["name"]
    config: type[MethodConfig] = method_class(name).Config
    options = {key: value for key, value in table.items() if key != "name"}
    try:
        filled = config(**options)
    except ValidationError as error:
        raise recipe_error(
            error, table="method", known=config.model_fields, source=source
        ) from None
    return {"name": name} | filled.model_dump(mode="json")


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
    if not isinstance(inner, dict):
        raise RecipeError(f"--set {override!r}: {key} is no table")
    return table | {key: _replaced(inner, rest, value, override)}


def _parse_value(text: str) -> Any:
    """A TOML value; bare words are strings, so that names need no quotes in a shell."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def find_key(name: str, *, method: str) -> str:
    """Find the table that a short name such as ``epochs`` belongs to.

    Args:
        name: A key of the recipe, of one of its tables, or of the method's config.
        method: Whose config counts.

    Returns:
        The dotted path, such as ``train.epochs``.

    Raises:
        RecipeError: If no table has such a key, or several have.
    """
    if name in Recipe.model_fields:
        return name
    tables: dict[str, type[BaseModel]] = {
        "train": TrainConfig,
        "data": DataConfig,
        "augment": AugmentConfig,
        "method": method_class(method).Config,
    }
    found = [f"{table}.{name}" for table, config in tables.items() if name in config.model_fields]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(f"{name} may mean {' or '.join(found)}", hint="give the whole table")
    known = [key for config in tables.values() for key in config.model_fields]
    raise RecipeError(f"no setting is called {name!r}", hint=nearest(name, known))
