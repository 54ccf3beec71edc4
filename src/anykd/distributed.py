"""Sums and gatherings over ranks. On one process each of them does nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

__all__ = [
    "first_rank_first",
    "from_each_rank",
    "from_first_rank",
    "gather_batch",
    "rank",
    "sum_over_ranks",
    "unequal",
    "wait_for_all",
    "world_size",
]

T = TypeVar("T")


def world_size() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Add up a tensor over all ranks, without gradient."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def from_each_rank(value: T) -> list[T]:
    """Collect a small value of every rank, on every rank, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let the first rank do something before the others, such as download a data set."""
    if rank() > 0:
        dist.barrier()
    try:
        yield
    finally:
        if rank() == 0 and world_size() > 1:
            dist.barrier()


def wait_for_all() -> None:
    """Wait until every rank has come here, such as for files that the first one writes."""
    if world_size() > 1:
        dist.barrier()


def from_first_rank(make: Callable[[], T]) -> T:
    """Compute something on the first rank alone, and give it to all.

    Args:
        make: What to compute; the others wait for it.
    """
    if world_size() == 1:
        return make()
    made = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made, src=0)
    return made[0]  # pyright: ignore[reportReturnType]


_counts: list[int] | None = None
"""Rows of each rank, where they are not equally many."""


@contextmanager
def unequal(counts: list[int] | None) -> Iterator[None]:
    """Tell `gather_batch` how many rows each rank has for a while.

    Exchanging the numbers in every gathering would make a GPU wait each time.

    Args:
        counts: One number per rank, from 1; None where all ranks have equally many.
    """
    global _counts
    before, _counts = _counts, counts
    try:
        yield
    finally:
        _counts = before


class _Gather(torch.autograd.Function):
    """Concatenate over ranks; the gradient of a row is summed over all ranks' losses.

    DistributedDataParallel averages gradients over ranks. So when every rank computes the loss of
    the whole gathered batch, summing here and averaging there gives that loss's exact gradient.
    """

    @staticmethod
    def forward(ctx, tensor: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        most = max(counts)
        padding = tensor.new_zeros(most - len(tensor), *tensor.shape[1:])
        padded = torch.cat([tensor, padding]).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        gradient = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[rank()], None


def gather_batch(tensor: Shaped[Tensor, " batch *rest"]) -> Shaped[Tensor, " everyone *rest"]:
    """Concatenate the batches of all ranks in rank order, with gradients.

    Args:
        tensor: This rank's rows; all ranks hold equally many, unless `unequal` says otherwise.

    Returns:
        The rows of the global batch, the same on every rank.
    """
    if world_size() == 1:
        return tensor
    return _Gather.apply(tensor, _counts or [len(tensor)] * world_size())
