"""How long an exported file takes, against the student in eager mode."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Latency", "measure_latency"]

_ROUNDS = (5, 50)
"""Fewest and most measurements of each."""
_SECONDS = 1.0
"""After so many no further round is begun."""


@dataclass(frozen=True)
class Latency:
    """Medians of one batch, measured in turns on this machine's processor.

    Attributes:
        batch_size: Images.
        eager_ms: Milliseconds of the student in eager mode, in float32.
        exported_ms: Milliseconds of the file.
        rounds: Measurements of each.
        threads: Of either.
    """

    batch_size: int
    eager_ms: float
    exported_ms: float
    rounds: int
    threads: int

    @property
    def ratio(self) -> float:
        """How many times as fast as eager mode the file is."""
        return self.eager_ms / self.exported_ms


def measure_latency(
    eager: Callable[[Tensor], Tensor], exported: Callable[[Tensor], Tensor], inputs: Tensor
) -> Latency:
    """Time both on one batch.

    Args:
        eager: The student.
        exported: The file.
        inputs: The batch.
    """
    for run in (eager, exported):  # caches and kernels are warmed
        run(inputs)
    found: tuple[list[float], list[float]] = ([], [])
    begun = time.perf_counter()
    while len(found[0]) < _ROUNDS[1]:
        if len(found[0]) >= _ROUNDS[0] and time.perf_counter() - begun > _SECONDS:
            break
        for run, times in zip((eager, exported), found, strict=True):
            start = time.perf_counter()
            run(inputs)
            times.append(1e3 * (time.perf_counter() - start))
    ours, theirs = (round(statistics.median(times), 4) for times in found)
    return Latency(len(inputs), ours, theirs, len(found[0]), torch.get_num_threads())
