"""A sample of a data set: opened once, for all findings that look at images."""

import hashlib
from dataclasses import dataclass

import numpy as np

from anykd.data import Reader
from anykd.errors import DataError

__all__ = ["Look", "look_at"]


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


def look_at(reader: Reader, count: int) -> Look:
    """Open a sample of images.

    Args:
        reader: Where they come from.
        count: How many; all where there are fewer.

    Returns:
        The same sample every time, and no global generator is touched.
    """
    chosen = np.random.default_rng(0).permutation(len(reader))[:count]
    positions, sizes, digests, unreadable = [], [], [], []
    for position in sorted(int(number) for number in chosen):
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
