"""WebDataset shards: tar archives of images, read by position without unpacking them."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import final

import numpy as np

from anykd.errors import DataError

from .classes import Values, number_classes
from .fingerprint import fingerprint_of
from .images import MAX_PIXELS, decode_pixels
from .parts import divide_by_name, train_and_val
from .reader import Sample, Source
from .shard_files import ShardFile, find_shards
from .shard_index import Member, find_members

__all__ = ["ShardReader", "open_shards"]


@final
class ShardReader:
    """Images of shards, read where they lie.

    The fingerprint is of the shards' names and sizes, of what lies where in them, and of the
    labels: it does not notice an image that was exchanged for one of the same size.

    Args:
        shards: The files.
        members: The images of each.
        labels: Class index of every image, shard after shard; None where nothing is known.
        max_pixels: Images of more are refused.
    """

    in_memory = False

    def __init__(
        self,
        shards: Sequence[ShardFile],
        members: Sequence[Sequence[Member]],
        labels: Sequence[int] | None,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        flat = [member for part in members for member in part]
        assert labels is None or len(flat) == len(labels)
        self._shards = tuple(shards)
        self._shard = np.repeat(np.arange(len(members)), [len(part) for part in members])
        self._offsets = np.array([member.offset for member in flat], dtype="<i8")
        self._sizes = np.array([member.size for member in flat], dtype="<i8")
        self._keys = [member.key for member in flat]
        self._max_pixels = max_pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the shards' names and sizes, their indices and the labels."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        names = [f"{shard.name} {shard.size}" for shard in self._shards]
        index = np.stack([self._shard, self._offsets, self._sizes])
        return fingerprint_of("shards", names, self._keys, index, numbers=self.labels)

    def key(self, position: int) -> str:
        """The shard's name and WebDataset's key, such as ``train-000000.tar/cat/12``."""
        return f"{self._shards[self._shard[position]].name}/{self._keys[position]}"

    def file_size(self, position: int) -> int:
        """Bytes of an image's file in its shard."""
        return int(self._sizes[position])

    def __getitem__(self, position: int) -> Sample:
        path = self._shards[self._shard[position]].path
        name = f"{path}/{self._keys[position]}"
        # Opened for each image, as files of a folder are: nothing to share between processes.
        try:
            with path.open("rb", buffering=0) as file:
                content = os.pread(
                    file.fileno(), int(self._sizes[position]), int(self._offsets[position])
                )
        except OSError as error:
            raise DataError(
                f"{name} cannot be read: {error.strerror}", "mend or replace the shard"
            ) from None
        label = None if self.labels is None else self.labels[position]
        return Sample(decode_pixels(content, name, self._max_pixels), label, position)


def open_shards(argument: str, *, labels: bool = True, max_pixels: int = MAX_PIXELS) -> Source:
    """Open WebDataset shards.

    Args:
        argument: A file, a folder, a pattern such as ``train-{000..009}.tar`` or ``*.tar``, or the
            same as an http, https or file URL, without ``*``. What is remote is fetched once, to
            the user's cache. Shards whose name, or a folder above them, says train, val, valid,
            validation or test are of that part.
        labels: Whether every image must have a label.
        max_pixels: Images of more count as unreadable.

    Raises:
        DataError: If there are no such shards, they are damaged, or hold no images or labels.
    """
    found = find_shards(argument)
    where = f"wds:{argument}"
    by_name = {shard.name: shard for shard in found.shards}
    divided = divide_by_name(list(by_name), where)
    parts = [
        None if part is None else [by_name[name] for name in divided[part]]
        for part in train_and_val(divided, where)
    ]
    members = [None if part is None else [find_members(one) for one in part] for part in parts]
    values = [
        None if part is None or lists is None else _values(part, lists, required=labels)
        for part, lists in zip(parts, members, strict=True)
    ]
    names, *numbers = number_classes(*values, where=where, names=found.class_names)
    readers = [
        ShardReader(part, lists, its_labels, max_pixels=max_pixels)
        for part, lists, its_labels in zip(parts, members, numbers, strict=True)
        if part is not None and lists is not None
    ]
    return Source(found.name, names, readers[0], readers[1] if len(readers) > 1 else None)


def _values(
    shards: Sequence[ShardFile], members: Sequence[Sequence[Member]], *, required: bool
) -> Values | None:
    """What the shards say of each image; None where that is not asked for and not complete."""
    values = []
    for shard, ones in zip(shards, members, strict=True):
        for one in ones:
            if one.label is None:
                if not required:
                    return None
                raise DataError(
                    f"{shard.path}/{one.key} has no label: no .cls, and no .json with a label",
                    "images without labels take data.labels = false, and method.task_weight = 0",
                )
            values.append(one.label)
    return values
