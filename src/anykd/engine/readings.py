"""Numbers that the host learns from the device without waiting for it."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Reading", "steps_behind"]

_BEHIND = 2


def steps_behind(device: torch.device) -> int:
    """How many steps late the host reads what came of one.

    A GPU works through a queue. A host that reads each step's result leaves it empty each time,
    for as long as it takes to prepare the next step. Two steps behind, the result is there already.
    Where the host itself computes, nothing is gained by waiting.
    """
    return _BEHIND if device.type == "cuda" else 0


class Reading:
    """A few numbers on their way to the host.

    Args:
        numbers: Perhaps not computed yet.
    """

    def __init__(self, numbers: Float[Tensor, " numbers"]) -> None:
        self._there: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def get(self) -> list[float]:
        """The numbers; waits until they are there."""
        if self._there is not None:
            self._there.synchronize()
        return self._numbers.tolist()
