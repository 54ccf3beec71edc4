"""Images decoded once: the pixels of a data set in one file, which is mapped into memory."""

import json
import shutil
import warnings
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anykd.errors import CheckpointError, DataError, first_line
from anykd.files import make_folder, remove_unfinished, write_atomically, written
from anykd.lock import held
from anykd.progress import Progress

from .images import MAX_PIXELS
from .reader import Reader, Sample, file_size
from .workers import choose_workers, leave_signals_to_parent

__all__ = ["DecodedReader", "decode_once"]

_FORMAT = 1
_PIXELS, _INDEX = "pixels.bin", "index.json"
_COMPARED = 8
"""Images that are decoded again where what is stored is opened."""
_SAMPLED = 64
"""Images from which the size of all is guessed."""
_MOST_BYTES = 4 * 2**30
"""Pixels of all images that may be copied to memory."""
_FEW_IMAGES = 500
"""Up to so many, starting worker processes costs more than they save."""
_ELSEWHERE = "give another folder, or leave data.decoded out"


@final
class DecodedReader:
    """The images of another reader, out of a file of their pixels.

    Labels, keys, fingerprint and pixels are the other reader's. What could not be read when the
    file was written, or has more pixels than are allowed now, is asked of the other reader, which
    says what is wrong with it.

    Args:
        reader: The images as they came.
        folder: Where their pixels are.
        max_pixels: Images of more are refused.

    Raises:
        DataError: If the folder does not hold the pixels of these images.
    """

    in_memory = False

    def __init__(self, reader: Reader, folder: Path, *, max_pixels: int = MAX_PIXELS) -> None:
        self._reader, self._max_pixels = reader, max_pixels
        self._path = folder / _PIXELS
        self._shapes = _read_index(folder / _INDEX, reader)
        self._ends = np.cumsum(3 * self._shapes.prod(axis=1))
        self.labels = reader.labels
        found = self._path.stat().st_size if self._path.is_file() else 0
        if found != self._ends[-1]:
            raise DataError(f"{self._path} has {found:,} bytes, {self._ends[-1]:,} were written")
        for position in _spread(len(reader), _COMPARED):
            self._compare(position)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def fingerprint(self) -> str:
        """That of the other reader."""
        return self._reader.fingerprint

    def key(self, position: int) -> str:
        """What the other reader calls the image."""
        return self._reader.key(position)

    def file_size(self, position: int) -> int | None:
        """Bytes of the file of an image; None where it is no file of its own."""
        return file_size(self._reader, position)

    def pixel_array(self) -> UInt8[np.ndarray, "count height width 3"] | None:
        """All images, if they are of one size and few; not to be changed."""
        height, width = self._shapes[0].tolist()
        alike = bool((self._shapes == self._shapes[0]).all())
        if not (alike and 0 < height * width <= self._max_pixels and self._ends[-1] <= _MOST_BYTES):
            return None
        return np.memmap(self._path, mode="r").reshape(-1, height, width, 3)

    def __getitem__(self, position: int) -> Sample:
        height, width = self._shapes[position].tolist()
        if not 0 < height * width <= self._max_pixels:
            return self._reader[position]
        end = int(self._ends[position])
        rows = self._mapped[end - 3 * height * width : end].view(height, width, 3)
        label = None if self.labels is None else self.labels[position]
        return Sample(rows.permute(2, 0, 1), label, position)

    def __getstate__(self) -> dict[str, Any]:
        """All but the mapping: each process that unpickles the reader makes its own."""
        return {name: value for name, value in vars(self).items() if name != "_mapped"}

    @cached_property
    def _mapped(self) -> UInt8[Tensor, " bytes"]:
        # For reading alone: the system counts a mapping that may be changed as memory in use.
        mapped = np.memmap(self._path, mode="r")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch has no tensors of that kind
            return torch.from_numpy(mapped)

    def _compare(self, position: int) -> None:
        """Refuse what the libraries that are installed now would not decode as it is stored."""
        try:
            expected = self._reader[position].pixels
        except DataError:
            return
        if not torch.equal(self[position].pixels, expected):
            raise DataError(f"{self._path} has other pixels of {self.key(position)} than its file")


def decode_once(reader: Reader, folder: Path, *, max_pixels: int = MAX_PIXELS) -> Reader:
    """Give the same images without the work of decoding them.

    The first time they are all decoded, to a folder in ``folder`` that is named after their
    fingerprint: whole or not at all. What is there of another origin, or cut off, or decoded by
    libraries that found other pixels, is replaced. Several processes at once are not served: under
    several ranks let one come first.

    Args:
        reader: Images; those in memory stay as they are.
        folder: Where pixels are kept; it may hold those of several data sets.
        max_pixels: Images of more are refused.

    Raises:
        DataError: If the disk has no room for them, nothing can be written there, or another
            process writes there now.
    """
    if reader.in_memory:
        return reader
    place = folder / reader.fingerprint[:16]
    say = Progress().say
    if place.exists():
        try:
            return DecodedReader(reader, place, max_pixels=max_pixels)
        except DataError as error:
            say(f"{error}: images are decoded anew")
    try:
        with written(folder):
            make_folder(folder)
        with held(folder):
            remove_unfinished(folder)
            _require_room(reader, place)
            write_atomically(place, partial(_write, reader))
    except CheckpointError as error:
        wait = "wait for that process, " if "is in use" in str(error) else ""
        raise DataError(str(error), f"{wait}{_ELSEWHERE}") from None
    return DecodedReader(reader, place, max_pixels=max_pixels)


def _require_room(reader: Reader, place: Path) -> None:
    """Say what is to be written, and refuse it where the disk is too small."""
    sampled = _spread(len(reader), _SAMPLED)
    found = [_pixels_of(reader, position) for position in sampled]
    needed = sum(one.numel() for one in found if one is not None) * len(reader) // len(sampled)
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise DataError(
            f"{len(reader):,} images take about {_size(needed)} as pixels, and the disk of "
            f"{place.parent} has {_size(free)} left",
            f"make room there, {_ELSEWHERE}",
        )
    Progress().say(
        f"decoding {len(reader):,} images once, to {place}: about {_size(needed)} of the "
        f"{_size(free)} that are left"
    )


def _write(reader: Reader, folder: Path) -> None:
    """Write the pixels of all images, one behind the other, and what lies where."""
    folder.mkdir()
    shapes: list[list[int]] = []
    progress = Progress()
    with (folder / _PIXELS).open("wb") as file, progress.counting("images", len(reader)):
        for rows in _decoded(reader):
            shapes.append([0, 0] if rows is None else [rows.shape[0], rows.shape[1]])
            if rows is not None:
                file.write(rows.numpy().data)
            progress.advance(1)
    index = {"format": _FORMAT, "fingerprint": reader.fingerprint, "shapes": shapes}
    (folder / _INDEX).write_text(json.dumps(index))


def _read_index(path: Path, reader: Reader) -> Int[np.ndarray, "images 2"]:
    """Height and width of each image; both 0 where it could not be read.

    Raises:
        DataError: If the file is of other images, broken, or not there.
    """
    try:
        index = json.loads(path.read_bytes())
        same = (index["format"], index["fingerprint"]) == (_FORMAT, reader.fingerprint)
        shapes = np.array(index["shapes"], dtype=np.int64).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    if not same or len(shapes) != len(reader) or shapes.min() < 0:
        raise DataError(f"{path} is of other images")
    return shapes


def _decoded(reader: Reader) -> Iterator[UInt8[Tensor, "height width 3"] | None]:
    """Decode all images in their order, in worker processes where they are many."""
    workers = choose_workers(None, reader) if len(reader) > _FEW_IMAGES else 0
    yield from DataLoader(
        _Pixels(reader),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # else it would draw from torch's global one
    )


@final
class _Pixels(Dataset[UInt8[Tensor, "height width 3"] | None]):
    """The pixels of a reader's images, row by row; None of one that cannot be read."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, position: int) -> UInt8[Tensor, "height width 3"] | None:
        return _pixels_of(self._reader, position)


def _pixels_of(reader: Reader, position: int) -> UInt8[Tensor, "height width 3"] | None:
    try:
        return reader[position].pixels.permute(1, 2, 0).contiguous()
    except DataError:
        return None


def _spread(count: int, most: int) -> list[int]:
    """Some positions from the first to the last, or all where they are few."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
