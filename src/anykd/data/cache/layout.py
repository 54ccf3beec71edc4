"""Which records a cache has, and in which of its files each of them is."""

import math
from dataclasses import dataclass

__all__ = ["Layout", "ShardKey"]

_MOST_RECORDS = 2**14
_MOST_BYTES = 2**26
_SHARDS = 16
"""Files that even a small cache has, for a few ranks to write at once."""


@dataclass(frozen=True)
class ShardKey:
    """One file of a cache.

    Attributes:
        view: Of which view, from 0.
        number: Of the file among those of its view, from 0.
        slots: The slots whose records it has.
    """

    view: int
    number: int
    slots: range

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"view-{self.view:04d}-{self.number:05d}.npy"


@dataclass(frozen=True)
class Layout:
    """How the records of a cache lie in its files.

    A *slot* is the place of an image in the order of a view; there is one record for every view
    and slot. Each file has the records of successive slots of one view.

    Attributes:
        num_views: Views.
        num_slots: Slots of a view.
        shard_slots: Slots of a file. It is even, so images that are mixed in pairs, which are
            neighbours, are in one file.
        record_bytes: Bytes of a record.
    """

    num_views: int
    num_slots: int
    shard_slots: int
    record_bytes: int

    @classmethod
    def planned(cls, *, num_views: int, num_slots: int, record_bytes: int) -> "Layout":
        """Choose files of some 16,384 records, not above 64 MiB, and not too few of them.

        Args:
            num_views: Views; at least 1.
            num_slots: Slots of a view; at least 1.
            record_bytes: Bytes of a record.

        Example:
            >>> plan = Layout.planned(num_views=4, num_slots=50_000, record_bytes=200)
            >>> plan.shard_slots, len(plan.shards), plan.bytes
            (12500, 16, 40000000)
        """
        most = max(1, min(_MOST_RECORDS, _MOST_BYTES // record_bytes))
        files = max(math.ceil(num_slots / most), math.ceil(_SHARDS / num_views))
        even = 2 * math.ceil(num_slots / files / 2)
        return cls(num_views, num_slots, even, record_bytes)

    @property
    def shards(self) -> tuple[ShardKey, ...]:
        """Every file, view by view."""
        firsts = range(0, self.num_slots, self.shard_slots)
        return tuple(
            ShardKey(view, number, range(first, min(first + self.shard_slots, self.num_slots)))
            for view in range(self.num_views)
            for number, first in enumerate(firsts)
        )

    @property
    def bytes(self) -> int:
        """Of all records; the files' headers come on top, some hundred bytes each."""
        return self.num_views * self.num_slots * self.record_bytes
