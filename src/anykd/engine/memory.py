"""What is said where memory does not suffice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anykd.errors import RecipeError

from .config import TrainConfig

__all__ = ["out_of_memory_in_words"]

_SAID = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""Parts of what torch's allocators, and the libraries below it, say in a plain RuntimeError."""


@contextmanager
def out_of_memory_in_words(config: TrainConfig, world_size: int) -> Iterator[None]:
    """Say in words that training needs more memory than there is, and what would need less.

    Args:
        config: The ``[train]`` table.
        world_size: Ranks that share a batch.

    Raises:
        RecipeError: In the place of what torch, its allocators or Python raise.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        images = max(1, config.batch_size // (world_size * config.grad_accum))
        raise RecipeError(
            f"out of memory with {images} image{'s' * (images > 1)} in a pass",
            hint=_what_takes_less(config, world_size),
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    is_named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_named or any(said in str(error) for said in _SAID)


def _what_takes_less(config: TrainConfig, world_size: int) -> str:
    """Settings to try, those that change the numbers least first."""
    share = config.batch_size // world_size
    parts = next((n for n in range(config.grad_accum + 1, share + 1) if share % n == 0), None)
    ways = []
    if parts is not None:
        smaller = config.batch_size * config.grad_accum // parts
        ways.append(f"train.grad_accum = {parts} (the same step in more parts)")
        ways.append(f"train.batch_size = {smaller}")
    if not config.grad_checkpointing:
        ways.append("train.grad_checkpointing = true")
    if config.precision == "float32":
        ways.append("train.precision = 'bf16'")
    return "try " + ", ".join(ways or ["a smaller image_size or student"])
