"""Every method by its name."""

import inspect
import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from anykd.config import recipe_error
from anykd.errors import RecipeError, nearest
from anykd.models import FrozenTeacher, StagedModel

from .base import Method, Paper
from .cc import CC
from .control import Control
from .crd import CRD
from .dist import DIST
from .dkd import DKD
from .fbt import FBT
from .fitnet import FitNet
from .kd import KD
from .ofa import OFA
from .pat import PAT
from .rkd import RKD
from .rsd import RSD

__all__ = ["METHODS", "build_method", "describe_method", "method_class", "published_values"]

METHODS: dict[str, type[Method]] = {
    "control": Control,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "fitnet": FitNet,
    "cc": CC,
    "rkd": RKD,
    "crd": CRD,
    "ofa": OFA,
    "fbt": FBT,
    "rsd": RSD,
    "pat": PAT,
}
"""Every method by its name in recipes."""


def method_class(name: str) -> type[Method]:
    """Look a method up.

    Raises:
        RecipeError: If no method has that name.
    """
    if name not in METHODS:
        raise RecipeError(f"no method is called {name!r}", hint=nearest(name, METHODS))
    return METHODS[name]


def build_method(
    name: str, student: StagedModel, teacher: FrozenTeacher | None = None, **options: Any
) -> Method:
    """Make a method from its name and options.

    Args:
        name: A key of ``METHODS``.
        student: The model that is trained.
        teacher: The model that teaches; ``control`` needs none.
        **options: Fields of the method's ``Config``.

    Raises:
        RecipeError: If the name or an option is unknown, a value does not fit, or a teacher is
            missing or scores other classes.
        ModelError: If the method needs something that a model cannot do.
    """
    cls = method_class(name)
    try:
        config = cls.Config(**options)
    except ValidationError as error:
        raise recipe_error(error, table="method", known=cls.Config.model_fields) from None
    return cls(student, teacher, config)


def published_values(name: str) -> dict[str, str]:
    """What a publication gives for the fields of a method's config, where one does."""
    return {
        key: note.value
        for key, field in method_class(name).Config.model_fields.items()
        for note in field.metadata
        if isinstance(note, Paper)
    }


def describe_method(name: str) -> str:
    """Put a method's summary and the fields of its config into lines for a terminal.

    Raises:
        RecipeError: If no method has that name.
    """
    method, published = method_class(name), published_values(name)
    lines = [inspect.getdoc(method) or "", "", f'[method] name = "{name}"', ""]
    for key, field in method.Config.model_fields.items():
        published_value = published.get(key, "not given")
        meaning = f"{field.description} {choices(field.annotation)}Published: {published_value}."
        lines += [
            f"{key} = {as_toml(field.default)}",
            textwrap.fill(meaning, 92, initial_indent="    ", subsequent_indent="    "),
        ]
    lines += [
        "",
        "Where there are several [[method]] tables, each may also have `weight`, a factor on its",
        "terms, and `teachers`, the numbers of those it learns from, counted from 1.",
    ]
    return "\n".join(lines)


def choices(annotation: Any) -> str:
    """The values that a field may have, where these are a list of words; ends with a blank."""
    if get_origin(annotation) is not Literal:
        return ""
    *others, last = (f"`{as_toml(value)}`" for value in get_args(annotation))
    return f"{', '.join(others)} or {last}. "


def as_toml(value: object) -> str:
    """A field's default as one writes it in a recipe."""
    if value is None:
        return "(none)"
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
