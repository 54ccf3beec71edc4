"""A sample of a data set: opened once, for all findings that look at images."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from anykd.data import Reader
from anykd.data.reader import file_size
from anykd.errors import DataError

__all__ = ["Look", "likely_copies", "look_at"]

_MOST_FILES = 100_000
"""Files whose sizes are asked for, at most: some seconds on a slow disk."""


@dataclass(frozen=True)
class Look:
    """What some images of a reader are like.

    Attributes:
        total: Images that the reader has.
        positions: Those of the sample that could be read.
        sizes: (height, width) of each of them, in pixels.
        digests: A hash of the decoded pixels of each.
        unreadable: What was said of each that could not be read.
    """

    total: int
    positions: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    digests: tuple[bytes, ...]
    unreadable: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.positions) + len(self.unreadable)


def look_at(reader: Reader, count: int, *, also: Collection[int] = ()) -> Look:
    """Open a sample of images.

    Args:
        reader: Where they come from.
        count: How many; all where there are fewer.
        also: Positions of more images to open.

    Returns:
        The same sample every time, and no global generator is touched.
    """
    chosen = np.random.default_rng(0).permutation(len(reader))[:count]
    positions, sizes, digests, unreadable = [], [], [], []
    for position in sorted({int(number) for number in chosen} | set(also)):
        try:
            image = reader[position].image
        except DataError as error:
            unreadable.append(str(error))
            continue
        positions.append(position)
        sizes.append((image.height, image.width))
        shape = f"{image.height}x{image.width}".encode()
        digests.append(hashlib.blake2b(shape + image.tobytes(), digest_size=16).digest())
    return Look(len(reader), tuple(positions), tuple(sizes), tuple(digests), tuple(unreadable))


def likely_copies(train: Reader, val: Reader, held_out: Collection[int], *, most: int) -> list[int]:
    """Find training files that are as long, to the byte, as one that is held out.

    A random sample of a large training set would hardly ever meet the copy of a held-out image.

    Args:
        train: Training images.
        val: Images to evaluate on.
        held_out: Positions in ``val`` to look for.
        most: Positions to return, at most.

    Returns:
        Positions in ``train``; none where images are no files.
    """
    sizes = {file_size(val, position) for position in held_out} - {None, 0}
    if not sizes or file_size(train, 0) is None:
        return []
    chosen = np.random.default_rng(0).permutation(len(train))[:_MOST_FILES]
    return [int(p) for p in chosen if file_size(train, int(p)) in sizes][:most]
