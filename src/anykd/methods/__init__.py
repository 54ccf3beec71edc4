"""One paper, one file; one name everywhere. A new method is a file and a line in ``METHODS``."""

import inspect
import textwrap
from typing import Any

from pydantic import ValidationError

from anykd.config import recipe_error
from anykd.errors import RecipeError, nearest
from anykd.models import FrozenTeacher, StagedModel

from .base import Classifier as Classifier
from .base import Method as Method
from .base import MethodConfig as MethodConfig
from .control import Control
from .fbt import FBT
from .kd import KD
from .ofa import OFA

METHODS: dict[str, type[Method]] = {"control": Control, "kd": KD, "ofa": OFA, "fbt": FBT}
"""Every method by its name in recipes."""


def method_class(name: str) -> type[Method]:
    """Look a method up.

    Raises:
        RecipeError: If no method has that name.
    """
    if name not in METHODS:
        raise RecipeError(f"no method is called {name!r}", hint=nearest(name, METHODS))
    return METHODS[name]


def describe_method(name: str) -> str:
    """Put a method's summary and the fields of its config into lines for a terminal.

    Raises:
        RecipeError: If no method has that name.
    """
    method = method_class(name)
    lines = [inspect.getdoc(method) or "", "", f'[method] name = "{name}"', ""]
    for key, field in method.Config.model_fields.items():
        meaning = textwrap.fill(
            field.description or "", 92, initial_indent="    ", subsequent_indent="    "
        )
        lines += [f"{key} = {_as_toml(field.default)}", meaning]
    return "\n".join(lines)


def _as_toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


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
