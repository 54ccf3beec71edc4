"""Make the plan of a run."""

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from anykd.data import TooFewImagesError
from anykd.distributed import world_size
from anykd.engine import launched
from anykd.errors import AnykdError, RecipeError
from anykd.experiment.assemble import Parts, assemble
from anykd.experiment.cache.use import adopt_views
from anykd.methods import Method
from anykd.methods.combination import Combination
from anykd.recipe import Recipe

from .cache import cache_size
from .check import check
from .cost import measure_cost
from .finding import Finding, impossible
from .memory import bytes_of
from .models import describe_models
from .plan import Plan

__all__ = ["make_plan", "preview"]


def make_plan(recipe: Recipe, *, steps: int = 5) -> Plan:
    """Put a run together without training it, look at it, and measure what it costs.

    Args:
        recipe: The experiment.
        steps: Optimiser steps to measure, at most; 0 measures nothing.

    Returns:
        The plan. Where the run is impossible it has one finding, which says why.

    Raises:
        RecipeError: Under several ranks.
    """
    with launched(device=recipe.train.device) as device:
        if world_size() > 1:
            raise RecipeError(
                f"a plan is made by one process, and here are {world_size()}",
                hint="call it without torchrun",
            )
        try:
            recipe = adopt_views(recipe)
            try:
                parts, obstacles = assemble(recipe, device), ()
            except TooFewImagesError as error:
                # Of the run that a smaller batch would make, everything else can be told.
                parts, obstacles = assemble(_of_small_batch(recipe), device), (impossible(error),)
            plan = preview(parts)
            plan = replace(plan, findings=(*obstacles, *plan.findings))
            if not steps or plan.errors:
                return plan
            return replace(plan, cost=measure_cost(parts, steps=steps))
        except AnykdError as error:
            return Plan(
                method=recipe.method_name,
                data={"source": recipe.data.source},
                findings=(impossible(error),),
            )


def _of_small_batch(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": 2})})


def preview(parts: Parts, *, findings: tuple[Finding, ...] | None = None) -> Plan:
    """Describe a run that is put together, and look for what is amiss; nothing is measured.

    Args:
        parts: The run; nothing in it changes.
        findings: Those that are known already; None looks for them.
    """
    models = describe_models(parts)
    return Plan(
        method=parts.recipe.method_name,
        data={
            "source": parts.recipe.data.source,
            "classes": parts.data.num_classes,
            "train_images": len(parts.data.train),
            "val_images": len(parts.data.val),
        },
        models=models,
        joins=parts.method.joins(),
        trains=_trained(parts.method),
        keeps_bytes=bytes_of([parts.student.model]),
        cache=cache_size(parts),
        findings=check(parts, models) if findings is None else findings,
    )


def _trained(method: Method) -> Mapping[str, int]:
    """Parameters that train, by the name of the module that holds them."""
    trained = {"student": _count(method.student)}
    if isinstance(method, Combination):
        for part in method.parts:
            trained |= {f"{key} ({part.name})": n for key, n in _own(part.method).items()}
    else:
        trained |= _own(method)
    return {name: count for name, count in trained.items() if count}


def _own(method: Method) -> dict[str, int]:
    """What each of a method's own modules trains."""
    modules = dict(method.named_children())
    modules.pop("student", None)
    return {name: _count(module) for name, module in modules.items()}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
