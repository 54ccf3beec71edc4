"""Distil any vision teacher into any vision student.

The library's doors, each imported when it is first used::

    anykd.plan(...)             what training a student would do and cost, and what is amiss
    anykd.distill(...)          train a student
    anykd.losses                losses: tensors in, scalar out
    anykd.models                any model as four stages and a head
    anykd.methods               the papers' methods, for your own training loop
    anykd.analysis              what two models have in common, and how good one is
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anykd import analysis as analysis
    from anykd import losses as losses
    from anykd import methods as methods
    from anykd import models as models
    from anykd.experiment import Plan as Plan
    from anykd.experiment import Result as Result
    from anykd.experiment import distill as distill
    from anykd.experiment.request import plan as plan

__version__ = "0.1.0"
__all__ = [
    "Plan",
    "Result",
    "__version__",
    "analysis",
    "distill",
    "losses",
    "methods",
    "models",
    "plan",
]


def __getattr__(name: str) -> Any:
    # torch and timm take seconds to import; `anykd --help` must not wait for them.
    if name in ("analysis", "losses", "methods", "models"):
        return import_module(f"anykd.{name}")
    if name in ("Plan", "Result", "distill"):
        return getattr(import_module("anykd.experiment"), name)
    if name == "plan":  # a folder in there has the same name
        return import_module("anykd.experiment.request").plan
    raise AttributeError(f"module 'anykd' has no attribute {name!r}")
