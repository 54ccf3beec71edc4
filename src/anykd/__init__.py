"""Distil any vision teacher into any vision student.

The library's doors, each imported when it is first used::

    anykd.distill(...)          train a student
    anykd.losses                losses: tensors in, scalar out
    anykd.models                any model as four stages and a head
    anykd.methods               the papers' methods, for your own training loop
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anykd import losses as losses
    from anykd import methods as methods
    from anykd import models as models
    from anykd.experiment import Result as Result
    from anykd.experiment import distill as distill

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "distill", "losses", "methods", "models"]


def __getattr__(name: str) -> Any:
    # torch and timm take seconds to import; `anykd --help` must not wait for them.
    if name in ("losses", "methods", "models"):
        return import_module(f"anykd.{name}")
    if name in ("Result", "distill"):
        return getattr(import_module("anykd.experiment"), name)
    raise AttributeError(f"module 'anykd' has no attribute {name!r}")
