"""Random choices as pure functions of a key, whatever was drawn before and in which process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch

__all__ = ["Stream", "generators_kept", "seed_generators", "seeded"]


class Stream(IntEnum):
    """What a key's choices are for; the second number of every key, so no two streams meet."""

    SPLIT = 1
    """Which images are held out: (seed, SPLIT)."""
    LIMIT = 2
    """Which training images are kept: (seed, LIMIT)."""
    ORDER = 3
    """In which order an epoch shows them: (seed, ORDER, epoch)."""
    VIEW = 4
    """How one image is cropped, flipped and recoloured: (seed, VIEW, view, index)."""
    ERASE = 5
    """Which patch of a view is erased: (seed, ERASE, view, index)."""
    MIX = 6
    """How two images are mixed: (seed, MIX, view, smaller of their indices)."""
    STAND_IN = 7
    """Which image takes the place of one that cannot be read: (seed, STAND_IN, view, index)."""
    PAIR = 8
    """Which images are mixed with each other: (seed, PAIR, view)."""


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Let the global generators of Python, NumPy and torch's CPU follow from a key for a while.

    timm's and torchvision's transforms draw from all three and take no generator of their own.
    Afterwards the three are as they were before.

    Args:
        key: Whole numbers, not negative.
    """
    with generators_kept():
        seed_generators(*key)
        yield


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch's CPU as they were before."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def seed_generators(*key: int, numpy: bool = True) -> None:
    """Let the three follow from a key from now on; within `generators_kept`.

    Args:
        key: Whole numbers, not negative.
        numpy: Whether anything will be drawn from NumPy's, which takes a fifth of the time.
    """
    words = np.random.SeedSequence(key).generate_state(8)
    random.seed(words.tobytes())
    if numpy:
        np.random.seed(words)
    # Not torch.manual_seed: that would also seed the accelerators, which training draws from.
    torch.default_generator.manual_seed(int.from_bytes(words[:2].tobytes(), "little"))
