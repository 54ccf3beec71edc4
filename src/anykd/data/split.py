"""Seeded choices of images that leave every class its share."""

from collections.abc import Sequence

import numpy as np

from anykd.errors import DataError

from .seeded import Stream

__all__ = ["hold_out", "keep"]


def keep(labels: Sequence[int], count: int, *, seed: int) -> list[int]:
    """Choose images such that each class keeps its share of them.

    Args:
        labels: Class index of every image.
        count: How many to choose; at most as many as there are.
        seed: Decides which.

    Returns:
        Positions in ascending order. The number of each class is within 1 of its exact share.
    """
    rng = np.random.default_rng((seed, Stream.LIMIT))
    members = _by_class(labels, rng)
    counts = _shares([len(m) for m in members], count, rng)
    return sorted(int(p) for m, n in zip(members, counts, strict=True) for p in m[:n])


def hold_out(labels: Sequence[int], fraction: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Divide images into those to train on and those to evaluate on, class by class.

    Args:
        labels: Class index of every image.
        fraction: Share to hold out, in (0, 1).
        seed: Decides which.

    Returns:
        Positions to train on and positions held out, each ascending. Every class keeps at least
        one image to train on; apart from that the number held out is within 1 of its share.

    Raises:
        DataError: If no class has an image to spare.
    """
    rng = np.random.default_rng((seed, Stream.SPLIT))
    members = _by_class(labels, rng)
    sizes = [len(m) for m in members]
    counts = _shares(sizes, max(1, round(len(labels) * fraction)), rng)
    counts = [min(n, size - 1) for n, size in zip(counts, sizes, strict=True)]
    if not sum(counts):
        raise DataError(
            f"{len(labels)} images of {len(sizes)} classes are too few to hold some out",
            "add images, or a val/ folder",
        )
    divided = list(zip(members, counts, strict=True))
    train = sorted(int(p) for m, n in divided for p in m[n:])
    held_out = sorted(int(p) for m, n in divided for p in m[:n])
    return train, held_out


def _by_class(labels: Sequence[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Positions of the images of each class that has some, shuffled."""
    array = np.asarray(labels)
    return [rng.permutation(np.flatnonzero(array == label)) for label in np.unique(array)]


def _shares(sizes: Sequence[int], total: int, rng: np.random.Generator) -> list[int]:
    """Divide a total in proportion to sizes by largest remainder; equal remainders draw lots."""
    exact = np.asarray(sizes) * total / sum(sizes)
    counts = np.floor(exact).astype(int)
    lots = rng.random(len(counts))
    by_remainder = np.lexsort((lots, counts - exact))
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts.tolist()
