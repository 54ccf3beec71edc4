"""The recipe: one TOML file, one object, one experiment."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from anykd.config import FrozenConfig, recipe_error
from anykd.data import AugmentConfig, DataConfig
from anykd.engine import TrainConfig
from anykd.errors import RecipeError, nearest
from anykd.methods import MethodTable, complete_tables, method_class, read_tables
from anykd.track import TrackConfig

__all__ = ["ModelConfig", "Recipe", "TeacherConfig", "apply_overrides", "find_key", "read_toml"]

ImageSize = PositiveInt | tuple[PositiveInt, PositiveInt]


Channels = float | tuple[float, float, float]


class _ModelTable(FrozenConfig):
    """What the tables of student and teacher share: which model it is, and how it sees images."""

    name: str
    """A timm architecture, ``hf-hub:NAME``, ``torchvision:NAME``, ``transformers:NAME``, a run
    directory, or your own ``FILE.py:FACTORY``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the model's own constructor, such as ``patch_size = 4``; for timm of its create_model."""
    stem: Literal["small"] | None = None
    """For CNNs of timm on small images: nothing before the first stage shrinks them, and a first
    convolution that is large or cuts patches becomes 3x3, with random weights. None leaves it."""
    image_size: ImageSize | None = None
    """Pixels that this model sees; None takes the recipe's, then the model's own. A run directory
    that teaches keeps its own."""
    mean: Channels | None = None
    """Subtracted from RGB in [0, 1]: three numbers, or one for all; None takes the model's own."""
    std: Channels | None = None
    """Divides what is left after that; None takes the model's own."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    """How this model's images are resized to its size; None takes the model's own."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """Evaluation: share of the resized image's short side that the centre crop keeps for this
    model. None takes ``augment.crop_pct`` in a run, and the model's own in ``anykd evaluate``."""
    weights: str | None = None
    """Take the weights of this file instead of those that belong to the name."""

    @field_validator("options")
    @classmethod
    def _options_repeat_no_key(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key in ("name", "pretrained", "image_size", "weights"):
            if key in options:
                raise ValueError(f"{key} is a key of the table itself, not of its options")
        return options

    @field_validator("std")
    @classmethod
    def _std_is_positive(cls, std: Channels | None) -> Channels | None:
        if std is not None and min(_three(std)) <= 0:
            raise ValueError(f"std divides, so it must be above 0, got {std}")
        return std

    def build_options(self) -> dict[str, Any]:
        """What `create_staged` is told of stem and view, where they are not the model's own."""
        given = {
            "stem": self.stem,
            "mean": None if self.mean is None else _three(self.mean),
            "std": None if self.std is None else _three(self.std),
            "interpolation": self.interpolation,
        }
        return {key: value for key, value in given.items() if value is not None}


def _three(channels: Channels) -> tuple[float, float, float]:
    return channels if isinstance(channels, tuple) else (channels, channels, channels)


class ModelConfig(_ModelTable):
    """The ``[student]`` table: a model by name."""

    pretrained: bool = False
    """Start from the weights that belong to the name."""


class FinetuneConfig(FrozenConfig):
    """The ``[teacher.finetune]`` table: how a teacher is trained before it teaches.

    Whatever else the ``[train]`` table says holds for the teacher too.
    """

    epochs: PositiveInt = 10
    """Passes over the training set."""
    peak_lr: PositiveFloat = 1e-4
    """Learning rate after warm-up."""
    batch_size: PositiveInt | None = None
    """Images per optimiser step, over all ranks; None takes ``train.batch_size``."""
    optimizer: str = "adamw"
    """Name of a timm optimiser."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay; biases, norms and what the model names itself are left alone."""
    warmup_epochs: NonNegativeFloat | None = None
    """Epochs of linear warm-up, fewer than epochs; None takes a tenth of them, 5 at most."""

    @model_validator(mode="after")
    def _warm_up_ends_before_training(self) -> "FinetuneConfig":
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs = {self.epochs}, got {self.warmup_epochs}"
            )
        return self


class TeacherConfig(_ModelTable):
    """The ``[teacher]`` table: a model with weights."""

    weight: PositiveFloat = 1.0
    """Factor on the terms that learn from this teacher."""
    classes: str | tuple[int | str, ...] | None = None
    """Which of the teacher's classes the data's are, in the data's order: indices or names, or the
    path of a text file with one a line. None finds them by name."""
    head: Literal["probe", "finetune"] | None = None
    """A new head for the data's classes. probe: a linear classifier, fitted on the teacher's pooled
    features. finetune: the whole teacher is trained first. None keeps its own classifier."""
    head_samples: PositiveInt = 20_000
    """Training images that a probe is fitted on, at most; each class has its share."""
    cache: str | None = None
    """Folder of this teacher's outputs, stored by ``anykd cache build``: it does not run in
    training then. ``augment.num_views`` and ``view_seed`` follow from it where they are not
    given."""
    fsdp: bool = False
    """Shard this teacher's weights over the ranks (FSDP2), instead of keeping all on each."""
    finetune: FinetuneConfig | None = None
    """How the teacher is trained first; filled in where ``head = "finetune"``, else not there."""

    @model_validator(mode="before")
    @classmethod
    def _finetuning_is_complete(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("head") == "finetune":
            return {"finetune": {}} | values
        return values

    @model_validator(mode="after")
    def _one_way_to_the_classes(self) -> "TeacherConfig":
        if self.classes is not None and self.head is not None:
            raise ValueError(
                "classes chooses among the teacher's own, and head makes new ones: give one of them"
            )
        if self.finetune is not None and self.head != "finetune":
            raise ValueError('a finetune table goes with head = "finetune"')
        return self

    def as_student(self) -> ModelConfig:
        """The same model as one that is trained, from the same weights."""
        shared = {key: getattr(self, key) for key in _ModelTable.model_fields}
        return ModelConfig(**shared, pretrained=self.weights is None)


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
    track: TrackConfig = TrackConfig()
    """Where the run's numbers go beside its own files."""

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
            raise _complaint(error, cls, "", source) from None

    def to_toml(self) -> str:
        """Write the recipe as TOML; reading it gives the same recipe."""
        values = self.model_dump(mode="json", exclude_none=True, by_alias=True)
        for key in ("teacher", "method"):
            tables = values.pop(key)
            if tables:
                values[key] = tables if len(tables) > 1 else tables[0]
        return tomli_w.dumps(values)


def _keys(config: type[BaseModel]) -> list[str]:
    """The tables and keys of a config, as they are written."""
    return [field.alias or key for key, field in config.model_fields.items()]


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
            raise _complaint(error, TeacherConfig, path, source) from None
    return tuple(teachers)


def _complaint(
    error: ValidationError, config: type[BaseModel], path: str, source: str
) -> RecipeError:
    """Say what is wrong with a table, or with a table in it."""
    location = error.errors()[0]["loc"]
    field = config.model_fields.get(str(location[0])) if location else None
    table = None if field is None else _table_of(field.annotation)
    known = _keys(config if table is None else table)
    return recipe_error(error, table=path, known=known, depth=2 if table else 1, source=source)


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
    if name in _keys(Recipe):
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
