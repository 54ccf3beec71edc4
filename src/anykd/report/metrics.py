"""Curves from the lines of a run's metrics."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from .record import RunRecord

__all__ = ["FEWEST", "curve", "ends", "term_names"]

_POSITION = ("event", "epoch", "step")
_NO_TERM = frozenset(
    (*_POSITION, "lr", "loss", "grad_norm", "bad_steps", "loss_scale", "images_per_second")
)

FEWEST = 6
"""Points that a curve needs before its ends are compared."""


def term_names(record: RunRecord) -> tuple[str, ...]:
    """The terms of a run's loss, in the order in which they were logged."""
    return tuple(dict.fromkeys(key for line in record.steps for key in line if key not in _NO_TERM))


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last tenth of a curve."""
    size = max(1, len(values) // 10)
    return median(values[:size]), median(values[-size:])


def curve(lines: Sequence[dict[str, Any]], key: str) -> list[float]:
    """The numbers of one name in some lines, without those that are null or not there."""
    return [line[key] for line in lines if line.get(key) is not None]
