"""Images that cannot be read: what takes their place, and when there are too many of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, final

import numpy as np

from anykd.errors import DataError

from .reader import Reader, Sample
from .seeded import Stream

__all__ = ["BadImagePolicy", "BadImages", "StandIns", "read_samples"]

BadImagePolicy = Literal["replace", "drop", "stop"]
"""What becomes of an image that cannot be read."""

_MOST_STAND_INS = 20
"""Images tried in place of one. Where so many fail in a row, the disk is gone, not an image."""
_SHOWN = 5
"""Images that an error names."""


@final
class StandIns:
    """Other images of the same class for those that cannot be read.

    Which one is tried first, second and so on is a pure function of (seed, epoch, position), so
    that neither ranks nor workers nor what was read before change a batch. Where nothing has a
    label, any other image will do.

    Args:
        reader: The images.
        seed: Decides which.
    """

    def __init__(self, reader: Reader, seed: int) -> None:
        self._reader, self._seed = reader, seed
        self._labels = None if reader.labels is None else np.asarray(reader.labels)

    def __call__(self, epoch: int, position: int, bad: dict[int, str]) -> Sample:
        """Read an image in place of another.

        Args:
            epoch: From 0.
            position: The image that cannot be read.
            bad: What was wrong with it, by position; those that fail too are added.

        Raises:
            DataError: If none of its class can be read.
        """
        same: np.ndarray = np.arange(len(self._reader))
        if self._labels is not None:
            same = np.flatnonzero(self._labels == self._labels[position])
        rng = np.random.default_rng((self._seed, Stream.STAND_IN, epoch, position))
        others = [other for other in rng.permutation(same).tolist() if other != position]
        for other in others[:_MOST_STAND_INS]:
            try:
                return self._reader[other]
            except DataError as error:
                bad[other] = str(error)
        tried = len(others[:_MOST_STAND_INS])
        raise DataError(
            f"{bad[position]}; "
            + (f"nor can {tried} others of its class" if tried else "its class has no other image"),
            "mend or remove the files",
        )


def read_samples(
    reader: Reader,
    positions: Sequence[int],
    *,
    policy: BadImagePolicy,
    stand_in: Callable[[int, dict[int, str]], Sample] | None = None,
) -> tuple[list[Sample], dict[int, str]]:
    """Read the images of a batch.

    Args:
        reader: Where they are.
        positions: Which, one or more.
        policy: What to do with those that cannot be read.
        stand_in: Gives another image for a position, and adds what it finds; with it there is
            always one image or more, also where all are to be dropped.

    Returns:
        The samples, and what was wrong with each image that could not be read, by position.

    Raises:
        DataError: If the policy is to stop, or there is no stand-in.
    """
    samples: list[Sample] = []
    bad: dict[int, str] = {}
    for position in positions:
        try:
            samples.append(reader[position])
        except DataError as error:
            if policy == "stop":
                raise
            bad[position] = str(error)
            if policy == "replace" and stand_in is not None:
                samples.append(stand_in(position, bad))
    if not samples and stand_in is not None:
        samples.append(stand_in(positions[0], bad))
    return samples, bad


@final
class BadImages:
    """The images of a data set that could not be read: each counts once, too many stop the run.

    Args:
        total: Images of the data set, over all ranks.
        kind: What they are for, as in "training images".
        max_fraction: Share of them that may fail.
        outcome: What becomes of each, as people read it.
        tell: Called once for each image, with a line that names it.
        found: Images that are known already, which grows.

    Attributes:
        found: What was wrong with each, by index.
    """

    def __init__(
        self,
        total: int,
        *,
        kind: str,
        max_fraction: float,
        outcome: str,
        tell: Callable[[str], None] | None,
        found: dict[int, str] | None = None,
    ) -> None:
        self._total, self._kind, self._max_fraction = total, kind, max_fraction
        self._outcome, self._tell = outcome, tell
        self.found: dict[int, str] = {} if found is None else found

    def add(self, found: Mapping[int, str]) -> None:
        """Count images, and name those that are new.

        Raises:
            DataError: If more have failed by now than may.
        """
        new = {index: words for index, words in found.items() if index not in self.found}
        self.found.update(new)
        if self._tell is not None:
            for words in new.values():
                self._tell(f"{words}; {self._outcome}")
        count = len(self.found)
        if new and count > self._max_fraction * self._total:
            shown = "; ".join(list(self.found.values())[:_SHOWN])
            raise DataError(
                f"{count} of {self._total} {self._kind} cannot be read so far, more than "
                f"data.max_bad_fraction = {self._max_fraction} allows: {shown}"
                + ("; ..." if count > _SHOWN else ""),
                "mend or remove them, or raise data.max_bad_fraction",
            )
