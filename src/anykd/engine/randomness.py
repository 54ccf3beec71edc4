"""The random numbers that models draw while they train, as a function of the position."""

import random

import numpy as np
import torch

__all__ = ["seed_everything"]


def seed_everything(*key: int) -> None:
    """Let every generator that a model may draw from follow from a key: torch's, NumPy's, Python's.

    Done before each part of each step, it makes dropout and the like depend on nothing that was
    drawn before: a run goes on exactly from a position, and no state of a generator is kept.

    Args:
        key: Whole numbers, not negative, such as (seed, epoch, step, part, rank).
    """
    seed = 0
    for number in key:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
