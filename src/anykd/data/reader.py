"""What a data set is to the rest of the package, and the readers that need no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from .fingerprint import fingerprint_of

__all__ = [
    "ArrayReader",
    "DataSplits",
    "JoinedReader",
    "Reader",
    "Sample",
    "Source",
    "SubsetReader",
    "UnlabelledReader",
    "file_size",
    "pixel_array",
]


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes:
        content: RGB, of any size: an image of Pillow's, or its pixels. Readers give what they have;
            `image` and `pixels` make the one of the other.
        label: Class index; None where the reader's images have no labels.
        index: Position in the reader that gave it, from 0 to its length - 1. It stands for the
            image wherever one is remembered (memories, caches, seeds of views).
    """

    content: Image.Image | UInt8[Tensor, "3 height width"]
    label: int | None
    index: int

    @property
    def image(self) -> Image.Image:
        """The image as Pillow's."""
        if isinstance(self.content, Image.Image):
            return self.content
        return Image.fromarray(self.content.permute(1, 2, 0).numpy())

    @property
    def pixels(self) -> UInt8[Tensor, "3 height width"]:
        """The image as bytes, whose channels lie side by side in memory; not to be changed."""
        if isinstance(self.content, Tensor):
            return self.content
        return torch.from_numpy(np.array(self.content)).permute(2, 0, 1)


@runtime_checkable
class Reader(Protocol):
    """Images by position. Reading one is a pure function of the position.

    A reader can be pickled, and read in forked processes.
    """

    @property
    def labels(self) -> Sequence[int] | None:
        """Class index of every image, known without opening any; None without labels."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether images come without reading files."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 that changes with any image, their order or a label.

        It is the same in every process, on every machine and wherever the files lie. Each reader
        says what it does not notice. It is computed when it is first asked for.
        """
        ...

    def key(self, position: int) -> str:
        """Name of an image within its data set, such as ``cat/0.png``; no other image has it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Sample: ...


@dataclass(frozen=True)
class DataSplits:
    """A data set that is ready for training.

    Attributes:
        name: Short name for logs and reports.
        class_names: One per class, in the order of the class indices; none where nothing has a
            label.
        train: Images to learn from.
        val: Images to evaluate on; none of them is in ``train``.
    """

    name: str
    class_names: tuple[str, ...]
    train: Reader
    val: Reader

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class Source:
    """A data set as it was found: ``val`` is None where it brings no split of its own."""

    name: str
    class_names: tuple[str, ...]
    train: Reader
    val: Reader | None


def file_size(reader: Reader, position: int) -> int | None:
    """Bytes of the file of an image; None where a reader's images are no files of their own."""
    find = getattr(reader, "file_size", None)
    return None if find is None else find(position)


def pixel_array(reader: Reader) -> UInt8[ndarray, "count height width 3"] | None:
    """RGB of all images of a reader in order; None where they have several sizes, or no memory.

    Args:
        reader: Those that can have a method of this name, which says the same.
    """
    find = getattr(reader, "pixel_array", None)
    return None if find is None else find()


@final
class ArrayReader:
    """Images of one size, held in memory. All pixels and labels are of the fingerprint.

    Args:
        images: RGB.
        labels: Class index of each.
        part: What the data set calls these images: the first half of their keys.
    """

    in_memory = True

    def __init__(
        self,
        images: UInt8[ndarray, "count height width 3"],
        labels: Sequence[int],
        *,
        part: str = "train",
    ) -> None:
        assert len(images) == len(labels)
        self._images = images
        self._part = part
        self.labels = labels

    def __len__(self) -> int:
        return len(self._images)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of pixels and labels."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of("array", self._images, numbers=self.labels)

    def key(self, position: int) -> str:
        """The part and the position, such as ``train/123``."""
        return f"{self._part}/{position}"

    def pixel_array(self) -> UInt8[ndarray, "count height width 3"]:
        """All images; not to be changed."""
        return self._images

    def __getitem__(self, position: int) -> Sample:
        pixels = torch.from_numpy(np.array(self._images[position])).permute(2, 0, 1)
        return Sample(pixels, self.labels[position], position)


@final
class SubsetReader:
    """Some images of another reader, numbered anew from 0.

    Args:
        reader: Where the images come from.
        positions: Which of them, in the new order.
    """

    def __init__(self, reader: Reader, positions: Sequence[int]) -> None:
        self._reader = reader
        self._positions = positions
        self.in_memory = reader.in_memory
        labels = reader.labels
        self.labels = None if labels is None else [labels[position] for position in positions]

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what the other reader is, and of the positions."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of("subset", self._reader.fingerprint, numbers=self._positions)

    def key(self, position: int) -> str:
        """What the other reader calls the image."""
        return self._reader.key(self._positions[position])

    def file_size(self, position: int) -> int | None:
        """Bytes of the file of an image; None where it is no file of its own."""
        return file_size(self._reader, self._positions[position])

    def pixel_array(self) -> UInt8[ndarray, "count height width 3"] | None:
        """A copy of these images; None as of `pixel_array`."""
        pixels = pixel_array(self._reader)
        return None if pixels is None else pixels[self._positions]

    def __getitem__(self, position: int) -> Sample:
        sample = self._reader[self._positions[position]]
        return Sample(sample.content, sample.label, position)


@final
class JoinedReader:
    """The images of one reader, and behind them those of another.

    Args:
        first: Has the positions from 0.
        second: Has those after them.
    """

    def __init__(self, first: Reader, second: Reader) -> None:
        self._first, self._second = first, second
        self.in_memory = first.in_memory and second.in_memory
        one, other = first.labels, second.labels
        self.labels = None if one is None or other is None else [*one, *other]

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what the two readers are."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        prints = [self._first.fingerprint, self._second.fingerprint]
        return fingerprint_of("joined", prints, numbers=self.labels)

    def file_size(self, position: int) -> int | None:
        """Bytes of the file of an image; None where it is no file of its own."""
        return file_size(*self._find(position))

    def key(self, position: int) -> str:
        """What the reader that has the image calls it."""
        reader, own = self._find(position)
        return reader.key(own)

    def pixel_array(self) -> UInt8[ndarray, "count height width 3"] | None:
        """A copy of all images; None as of `pixel_array`."""
        one, other = pixel_array(self._first), pixel_array(self._second)
        if one is None or other is None or one.shape[1:] != other.shape[1:]:
            return None
        return np.concatenate([one, other])

    def __getitem__(self, position: int) -> Sample:
        reader, own = self._find(position)
        sample = reader[own]
        return Sample(sample.content, None if self.labels is None else sample.label, position)

    def _find(self, position: int) -> tuple[Reader, int]:
        """Which of the two has an image, and where."""
        behind = position - len(self._first)
        return (self._first, position) if behind < 0 else (self._second, behind)


@final
class UnlabelledReader:
    """The images of another reader, without their labels.

    Args:
        reader: Where the images come from.
    """

    labels = None

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.in_memory = reader.in_memory

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what the other reader is, and of there being no labels."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of("unlabelled", self._reader.fingerprint, numbers=None)

    def file_size(self, position: int) -> int | None:
        """Bytes of the file of an image; None where it is no file of its own."""
        return file_size(self._reader, position)

    def key(self, position: int) -> str:
        """What the other reader calls the image."""
        return self._reader.key(position)

    def pixel_array(self) -> UInt8[ndarray, "count height width 3"] | None:
        """As of the other reader."""
        return pixel_array(self._reader)

    def __getitem__(self, position: int) -> Sample:
        sample = self._reader[position]
        return Sample(sample.content, None, sample.index)
