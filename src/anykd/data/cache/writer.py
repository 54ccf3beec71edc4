"""Writing a cache, by any number of ranks, in as many starts as it takes.

::

    CACHE/building.json            what it is made of; written first
          view-0003-00012.npy      records
          written-RANK.jsonl       which files a rank has written, and their sha256
          manifest.json            what it is made of, and all sha256; written last
"""

import json
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, final

import numpy as np

from anykd.errors import CacheError, CheckpointError
from anykd.files import make_folder, remove_unfinished, sync, write_atomically, written
from anykd.lock import held, is_lock

from .layout import ShardKey
from .manifest import Manifest
from .shard import require_whole, sha256, write_shard

__all__ = ["AGAIN", "BUILDING", "MANIFEST", "CacheWriter", "written_shards"]

AGAIN = "run the same `anykd cache build` again: it goes on where it was"

MANIFEST, BUILDING = "manifest.json", "building.json"
_JOURNAL = "written-{}.jsonl"
_MOMENT = 60.0
"""Seconds that what one machine writes may take to be seen on another."""


@final
class CacheWriter:
    """A cache that is being written, or goes on being written.

    It is a context: the first rank enters it before the others do, and keeps other processes out
    of the folder until it leaves it. No rank may write before all have entered, since `todo` is
    what was left when a rank did.

    What is killed at any moment, or ends on a full disk, goes on where it was: files that are
    written stay, and the finished cache is the same to the bit.

    Args:
        path: The folder; made where it is missing.
        manifest: What the cache is made of.
        rank: Number of this process among those that write, from 0.
    """

    def __init__(self, path: str | Path, manifest: Manifest, *, rank: int = 0) -> None:
        self.path = Path(path)
        self.manifest = manifest.model_copy(update={"shards": {}})
        self._rank = rank
        self._todo: list[ShardKey] = []
        self._exit = ExitStack()

    def __enter__(self) -> "CacheWriter":
        """Look at what is there, and begin or go on.

        Raises:
            CacheError: If the folder holds another cache, or something else, or a live process is
                writing to it, or it cannot be written.
        """
        with ExitStack() as entered:
            if self._rank == 0:
                entered.enter_context(self._hold())
            self._look()
            self._exit = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def finished(self) -> bool:
        """Whether there is nothing to do any more."""
        return (self.path / MANIFEST).is_file()

    def todo(self) -> list[ShardKey]:
        """The files that were not written yet when this rank entered, in order.

        It is the same list on every rank, which may take every so-manieth of it; over a network
        file system, which may show ranks different things, give all of them the first one's.
        """
        return list(self._todo)

    def write(self, shard: ShardKey, records: np.ndarray) -> None:
        """Write one file, and wait until it is on the disk.

        Args:
            shard: Which; one of `todo`.
            records: One for each of its slots, as the manifest's codec makes them.

        Raises:
            CacheError: If it cannot be written.
        """
        expected = (len(shard.slots),), self.manifest.codec.record
        if (records.shape, records.dtype) != expected:
            raise CacheError(
                f"{shard.name} takes {expected[0][0]:,} records of {expected[1].itemsize} bytes, "
                f"got {records.shape} of {records.dtype.itemsize} bytes"
            )
        with _in_words(self.path / shard.name):
            digest = write_shard(self.path / shard.name, records)
        journal = self.path / _JOURNAL.format(self._rank)
        with _in_words(journal):
            _append(journal, _line(shard.name, digest))

    def finish(self, **built: Any) -> Manifest:
        """Mark the cache as finished. On one rank, when all have written their files.

        Args:
            built: What is known of the building by now, such as seconds; it joins what
                ``manifest.built`` has.

        Returns:
            The manifest of the finished cache.

        Raises:
            CacheError: If a file is missing after a minute: network file systems need a moment.
        """
        if self.finished:
            return Manifest.read(self.path / MANIFEST)
        names = [shard.name for shard in self.manifest.layout.shards]
        if not _in_a_moment(lambda: len(self._written()) == len(names)):
            missing = [name for name in names if name not in self._written()]
            raise CacheError(
                f"{self.path} cannot be finished: {len(missing)} of {len(names)} files are not "
                f"written, the first of them {missing[0]}",
                hint=AGAIN,
            )
        manifest = self.manifest.model_copy(
            update={"shards": self._written(), "built": self.manifest.built | built}
        )
        self._write_text(MANIFEST, manifest.to_json())
        self._clear()
        return manifest

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Keep the folder to this process, and take away what killed ones left half-written."""
        with _in_words(self.path):
            made = make_folder(self.path)
        try:
            with ExitStack() as lock:
                with _in_words(self.path, "wait for that or mend it, or give another folder"):
                    lock.enter_context(held(self.path))
                remove_unfinished(self.path)
                yield
        finally:
            for folder in reversed(made):
                with suppress(OSError):  # it is not empty
                    folder.rmdir()

    def _look(self) -> None:
        """Find out what is to do; the first rank also puts the folder in order."""
        first = self._rank == 0
        if self.finished:
            found = self._require_same(MANIFEST, "another cache")
            intact = _whole(self.path, found, found.shards)
            if first and len(intact) == len(found.layout.shards):
                self._clear()
            elif first:
                self._open_again({name: found.shards[name] for name in intact})
        elif first and not self._begun():
            self._require_empty()
            self._write_text(BUILDING, self.manifest.to_json())
            intact = []
        elif _in_a_moment(self._begun):
            self._require_same(BUILDING, "the beginning of another cache")
            intact = [*self._written()]
        else:
            raise CacheError(
                f"rank {self._rank} on {socket.gethostname()} does not see {self.path}, which the "
                "first rank has made",
                hint="all machines must share the folder: give one on a shared disk",
            )
        self._todo = [shard for shard in self.manifest.layout.shards if shard.name not in intact]

    def _begun(self) -> bool:
        return (self.path / BUILDING).is_file()

    def _written(self) -> dict[str, str]:
        return written_shards(self.path, self.manifest)

    def _require_same(self, name: str, what: str) -> Manifest:
        found = Manifest.read(self.path / name)
        unlike = found.unlike(self.manifest)
        if unlike:
            raise CacheError(
                f"{self.path} holds {what}: {'; '.join(unlike)}",
                hint="give another folder, or remove this one",
            )
        return found

    def _require_empty(self) -> None:
        if not all(is_lock(path) for path in self.path.iterdir()):
            raise CacheError(f"{self.path} is not empty", hint="give another folder")

    def _open_again(self, intact: dict[str, str]) -> None:
        """Let a finished cache, of which files are gone, be one that is being built."""
        self._write_text(BUILDING, self.manifest.to_json())
        lines = (_line(name, digest) for name, digest in intact.items())
        self._write_text(_JOURNAL.format(self._rank), "".join(lines))
        with _in_words(self.path):
            (self.path / MANIFEST).unlink()
            sync(self.path)

    def _clear(self) -> None:
        """Take away what only a cache that is being built needs."""
        with _in_words(self.path):
            for path in (self.path / BUILDING, *self.path.glob(_JOURNAL.format("*"))):
                path.unlink(missing_ok=True)
            sync(self.path)

    def _write_text(self, name: str, text: str) -> None:
        def write(new: Path) -> None:
            new.write_text(text)

        with _in_words(self.path / name):
            write_atomically(self.path / name, write)


def _in_a_moment(there: Callable[[], bool]) -> bool:
    """Whether something comes true within a minute."""
    end = time.monotonic() + _MOMENT
    while not there():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def written_shards(path: Path, manifest: Manifest) -> dict[str, str]:
    """Find out which files of a cache that is being built are there, and their sha256."""
    written: dict[str, set[str]] = {shard.name: set() for shard in manifest.layout.shards}
    for journal in sorted(path.glob(_JOURNAL.format("*"))):
        for line in journal.read_text(errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a kill or a full disk cut it off
                entry = json.loads(line)
                written[entry["name"]].add(entry["sha256"])
    whole = _whole(path, manifest, {name for name, digests in written.items() if digests})
    # One that was lost and written again has two lines; they may differ.
    return {
        name: written[name].pop() if len(written[name]) == 1 else sha256(path / name)
        for name in whole
    }


def _whole(path: Path, manifest: Manifest, names: Collection[str]) -> list[str]:
    """Those of some of a cache's files that are there and not cut off."""
    whole = []
    for shard in manifest.layout.shards:
        with suppress(CacheError):
            if shard.name in names:
                require_whole(path / shard.name, manifest.codec.record, len(shard.slots))
                whole.append(shard.name)
    return whole


def _line(name: str, digest: str) -> str:
    # It begins on a new line too: a killed process may have left half of one.
    return f"\n{json.dumps({'name': name, 'sha256': digest})}\n"


def _append(path: Path, text: str) -> None:
    """Add to a file, and wait until that is on the disk."""
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _in_words(path: Path, hint: str = f"mend that and {AGAIN}") -> Iterator[None]:
    """Say in words what keeps a part of a cache from being written."""
    try:
        with written(path):
            yield
    except CheckpointError as error:
        raise CacheError(str(error), hint=hint) from error
