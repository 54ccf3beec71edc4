"""What lies where in a shard."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from anykd.errors import CheckpointError, DataError, first_line
from anykd.files import write_atomically

from .downloads import cache_folder
from .images import EXTENSIONS
from .shard_files import ShardFile

__all__ = ["Member", "find_members", "read_members"]

_VERSION = 1
"""Raised whenever `read_members` finds other things in the same shard."""
_BLOCK = 512  # bytes; tar archives consist of such
_MOST_LABEL_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Member:
    """One image in a shard.

    Attributes:
        key: What WebDataset calls the sample: the name up to its first dot.
        offset: Where the bytes of the image begin in the shard.
        size: How many there are.
        label: Number or name of its class; None where the shard has none.
    """

    key: str
    offset: int
    size: int
    label: int | str | None


def find_members(shard: ShardFile) -> list[Member]:
    """List what is in a shard: as it was noted before, else by `read_members`.

    Reading the headers of a million images takes minutes, so the list is kept in the user's cache.
    It counts as long as path, size and time of the shard are the same.

    Raises:
        DataError: As `read_members` does.
    """
    state = (_VERSION, str(shard.path.resolve()), shard.size, shard.path.stat().st_mtime_ns)
    name = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    path = cache_folder() / "indices" / f"{name}.json"
    with suppress(OSError, ValueError, TypeError):
        return [Member(*values) for values in json.loads(path.read_bytes())]
    members = read_members(shard)

    def write(new: Path) -> None:
        new.write_text(json.dumps([[m.key, m.offset, m.size, m.label] for m in members]))

    with suppress(CheckpointError):  # a cache that cannot be written costs time, no more
        write_atomically(path, write)
    return members


def read_members(shard: ShardFile) -> list[Member]:
    """Read the headers of a shard, and its labels.

    Files that follow each other and are called alike up to the first dot are one sample. Links and
    what else is no plain file are passed over: nothing is ever unpacked.

    Raises:
        DataError: If the shard is damaged, compressed, or a sample has no image or several.
    """
    try:
        with shard.path.open("rb") as file:
            found = list(_plain_files(file))
            groups = groupby(found, key=lambda one: _divide(one.name)[0])
            return [_read_sample(key, list(members), file, shard) for key, members in groups]
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{shard.path} cannot be read as a tar archive: {first_line(error)}",
            "replace it; compressed archives must be unpacked to .tar, for in them there is no way "
            "to one image",
        ) from None


def _plain_files(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.size < 0:  # it would lead back to what was read already, without end
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
            if member.isreg() and not member.issparse() and not _is_meta(member.name):
                yield member
        # tarfile takes a damaged header for the end: what follows would be missed in silence.
        if any(os.pread(file.fileno(), _BLOCK, archive.offset)):
            raise tarfile.ReadError(f"the header at byte {archive.offset} is damaged")


def _divide(name: str) -> tuple[str, str]:
    """The key of a sample, and what the file holds of it, in small letters."""
    folder, slash, base = name.rpartition("/")
    key, _, kind = base.partition(".")
    return f"{folder}{slash}{key}", kind.lower()


def _is_meta(name: str) -> bool:
    """Whether a file says something of the shard, as WebDataset marks it."""
    base = name.rpartition("/")[2]
    return base.startswith(("__", ".")) or not base


def _read_sample(
    key: str, members: list[tarfile.TarInfo], file: BinaryIO, shard: ShardFile
) -> Member:
    kinds = {_divide(member.name)[1]: member for member in members}
    images = [kind for kind in kinds if f".{kind.rpartition('.')[2]}" in EXTENSIONS]
    # An image called just 0001.png stands before its 0001.mask.png.
    images = [kind for kind in images if "." not in kind] or images
    if len(images) != 1:
        raise DataError(
            f"{shard.path}/{key} has {len(images)} images"
            + (
                f": {', '.join(sorted(images))}" if images else f", only {', '.join(sorted(kinds))}"
            ),
            f"each sample is one image: {', '.join(sorted(EXTENSIONS))}",
        )
    image = kinds[images[0]]
    label = None
    for kind, parse in (("cls", _parse_class), ("json", _parse_json)):
        if label is None and kind in kinds:
            member = kinds[kind]
            content = b""
            if member.size <= _MOST_LABEL_BYTES:
                content = os.pread(file.fileno(), member.size, member.offset_data)
            try:
                label = parse(content)
            except (ValueError, RecursionError):
                raise DataError(
                    f"{shard.path}/{member.name} holds no label",
                    "a .cls is a whole number or a name, a .json has it under the key label",
                ) from None
    return Member(key, image.offset_data, image.size, label)


def _parse_class(content: bytes) -> int | str:
    text = content.decode().strip()
    if not text:
        raise ValueError("it is empty")
    return int(text) if text.isascii() and text.isdigit() else text


def _parse_json(content: bytes) -> int | str | None:
    found = json.loads(content)
    label = found.get("label") if isinstance(found, dict) else None
    if label is not None and (not isinstance(label, int | str) or isinstance(label, bool)):
        raise ValueError("it is neither a number nor a name")
    return label
