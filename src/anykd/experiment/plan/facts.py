"""The lines of a plan that are no table of models or stages: what trains, what it costs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from anykd.units import amount, duration, percent, size

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["facts_table"]


def facts_table(plan: "Plan") -> Table:
    """What trains, what is kept, what it costs."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    table.add_column(style="bold", min_width=8)
    table.add_column(overflow="fold")
    total = sum(plan.trains.values())
    trained = " + ".join(f"{name} {amount(count)}" for name, count in plan.trains.items())
    table.add_row("trains", f"{trained} = {amount(total)} parameters" if total else "nothing")
    kept = f"the student alone: {amount(plan.models[0].parameters)} parameters"
    table.add_row("keeps", f"{kept}, {size(plan.keeps_bytes)}")
    if plan.cost is not None:
        for name, said in _cost(plan):
            table.add_row(name, said)
    if plan.cache is not None:
        table.add_row("cache", _cache(plan))
        for number, served in enumerate(plan.cache.serves, start=1):
            whose = f"teacher {number}: " if len(plan.cache.serves) > 1 else ""
            table.add_row("", f"{whose}{served}")
    return table


def _cost(plan: "Plan") -> Iterator[tuple[str, str]]:
    cost = plan.cost
    assert cost is not None
    scaled = ""
    if cost.measured_batch_size != cost.batch_size:
        scaled = f", measured with {cost.measured_batch_size} and scaled"
    yield (
        "step",
        f"{duration(cost.seconds_per_step)} for {cost.batch_size} images{scaled}: "
        f"{cost.images_per_second:,.0f} images/s on {cost.device}",
    )
    if len(plan.models) > 1:
        whose = "teacher's" if len(plan.models) == 2 else "teachers'"
        yield "", f"{percent(cost.teacher_share)} of it in the {whose} forward pass"
    workers = f"{cost.workers} workers" if cost.workers else "the training process"
    yield "loading", f"{cost.loading_images_per_second:,.0f} images/s by {workers}"
    yield (
        "time",
        f"{duration(cost.seconds_per_epoch)} an epoch, {duration(cost.seconds)} in all, evaluation "
        "not counted",
    )
    yield "memory", f"{size(cost.memory_bytes)}: {cost.memory_how}"


def _cache(plan: "Plan") -> str:
    cache = plan.cache
    assert cache is not None
    views = f"{cache.views} views" if cache.views > 1 else "1 view"
    parts = []
    if cache.logits_bytes:
        top = f" ({size(cache.top_k_bytes)} for the best {cache.top_k})"
        smaller = cache.top_k_bytes < cache.logits_bytes
        parts.append(f"class scores {size(cache.logits_bytes)}{top if smaller else ''}")
    if cache.pooled_bytes:
        parts.append(f"pooled vectors {size(cache.pooled_bytes)}")
    if cache.stage_bytes:
        parts.append(f"stage maps {size(cache.stage_bytes)}, which are never stored")
    of = f"{cache.images:,} images x {views}, float16"
    return f"of the teacher's outputs would take {', '.join(parts) or 'nothing'} ({of})"
