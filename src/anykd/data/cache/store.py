"""Reading a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int, UInt8

from anykd.errors import CacheError
from anykd.types import Stored

from .layout import Layout
from .manifest import Manifest
from .shard import map_shard, sha256
from .writer import AGAIN, BUILDING, MANIFEST, written_shards

__all__ = ["Cache"]


@final
class Cache:
    """A finished cache.

    Its files are mapped into memory as they are needed. It can be used by any number of processes,
    forked ones too, and pickled: then it is opened again.

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        manifest: What the cache was made of, and what it holds.

    Raises:
        CacheError: If there is none, it is not finished, or its manifest is broken. Its other
            files are looked at when they are needed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise self._missing()
        self.manifest = Manifest.read(self.path / MANIFEST)
        self._layout: Layout = self.manifest.layout
        self._shards = self._layout.shards
        self._per_view = len(self._shards) // self._layout.num_views
        self._record = self.manifest.codec.record
        self._mapped: dict[int, UInt8[np.ndarray, "records bytes"]] = {}

    def __reduce__(self) -> tuple[type["Cache"], tuple[Path]]:
        return Cache, (self.path,)

    def read(self, view: int, slots: Sequence[int] | Int[np.ndarray, " batch"]) -> Stored:
        """Read what the teacher said of some images.

        Args:
            view: Number of the view, from 0.
            slots: The places of the images in the order of that view; any, in any order.

        Raises:
            CacheError: If a file is missing or damaged.
            IndexError: If there is no such view or slot.
        """
        return self.manifest.codec.decode(self.records(view, slots))

    def records(self, view: int, slots: Sequence[int] | Int[np.ndarray, " batch"]) -> np.ndarray:
        """Read records as they are stored.

        Args:
            view: Number of the view, from 0.
            slots: As `read` takes them.
        """
        wanted = np.asarray(slots, dtype=np.int64)
        layout = self._layout
        if not 0 <= view < layout.num_views:
            raise IndexError(f"the cache has {layout.num_views} views, got view {view}")
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < layout.num_slots:
            raise IndexError(f"the cache has {layout.num_slots} slots, got {wanted}")
        numbers, rows = np.divmod(wanted, layout.shard_slots)
        records = np.empty((len(wanted), layout.record_bytes), np.uint8)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            records[places] = self._shard(view * self._per_view + int(number))[rows[places]]
        return records.view(self._record)[:, 0]

    def verify_checksums(self) -> list[str]:
        """Read every file from its beginning to its end.

        Returns:
            Names of those that are missing or not as they were written; empty where all are whole.
        """
        return [shard.name for shard in self._shards if not self._as_written(shard.name)]

    @property
    def bytes(self) -> int:
        """Of its files on the disk."""
        paths = [self.path / name for name in (MANIFEST, *(s.name for s in self._shards))]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def _as_written(self, name: str) -> bool:
        try:
            return sha256(self.path / name) == self.manifest.shards.get(name)
        except OSError:
            return False

    def _shard(self, number: int) -> UInt8[np.ndarray, "records bytes"]:
        """The records of a file, counted through all views."""
        if number not in self._mapped:
            shard = self._shards[number]
            try:
                records = map_shard(self.path / shard.name, self._record, len(shard.slots))
            except CacheError as error:
                raise CacheError(
                    str(error),
                    hint=f"`anykd cache verify {self.path}` names every damaged file; remove them "
                    "and run the same `anykd cache build` again: it makes what is missing",
                ) from error
            self._mapped[number] = records
        return self._mapped[number]

    def _missing(self) -> CacheError:
        """Why there is nothing to read."""
        if not (self.path / BUILDING).is_file():
            return CacheError(f"{self.path} holds no cache", hint="make one: anykd cache build")
        manifest = Manifest.read(self.path / BUILDING)
        done, all_ = len(written_shards(self.path, manifest)), len(manifest.layout.shards)
        return CacheError(
            f"{self.path} is not finished: {done} of {all_} files are written", hint=AGAIN
        )
