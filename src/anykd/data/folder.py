"""Folders of class folders, and what to say where a folder is not there."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np

from anykd.errors import DataError, nearest

from .fingerprint import fingerprint_of
from .images import EXTENSIONS, MAX_PIXELS, read_pixels
from .reader import Sample, Source

__all__ = ["FolderReader", "missing_folder", "open_folder", "open_unlabelled", "subfolders"]

VAL_NAMES = ("val", "valid", "validation", "test")
"""Names of the folder to evaluate on; the first that exists is taken."""


@final
class FolderReader:
    """Image files, opened when they are asked for.

    The fingerprint is of names, sizes and labels: it does not notice a file that was overwritten
    by another of the same size. Times do not count, since copies have others.

    Args:
        paths: One file per image.
        labels: Class index of each; None where nothing is known.
        root: The folder of the data set, from which on names count; None takes the one that all
            files share.
        max_pixels: Images of more are refused.
    """

    in_memory = False

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int] | None,
        *,
        root: Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        assert labels is None or len(paths) == len(labels)
        self._root = root or Path(os.path.commonpath([path.parent for path in paths]))
        self._paths = paths
        self._max_pixels = max_pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the names from ``root`` on, the files' sizes, and the labels."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        names = [self.key(position) for position in range(len(self))]
        sizes = np.array([self.file_size(position) for position in range(len(self))], dtype="<i8")
        return fingerprint_of("files", names, sizes, numbers=self.labels)

    def key(self, position: int) -> str:
        """Path of the file from ``root`` on, with forward slashes."""
        return self._paths[position].relative_to(self._root).as_posix()

    def file_size(self, position: int) -> int:
        """Bytes of an image's file, without opening it; 0 where it is gone."""
        path = self._paths[position]
        return path.stat().st_size if path.is_file() else 0

    def __getitem__(self, position: int) -> Sample:
        label = None if self.labels is None else self.labels[position]
        return Sample(read_pixels(self._paths[position], self._max_pixels), label, position)


def open_folder(root: Path, *, max_pixels: int = MAX_PIXELS) -> Source:
    """Open a folder whose class folders hold images, at any depth.

    It is divided already if it has ``train/`` with class folders, and beside it one of ``val/``,
    ``valid/``, ``validation/`` or ``test/``. Hidden files and folders, and files that are not
    images by their extension, are left out. Classes are sorted by name.

    Args:
        root: A folder that exists.
        max_pixels: Images of more count as unreadable.

    Raises:
        DataError: If there are fewer than two classes, one has no images, or the classes to
            evaluate on are not those to train on.
    """
    name = root.resolve().name
    val = next((root / name for name in VAL_NAMES if subfolders(root / name)), None)
    # A class may itself be called "train": then that folder holds images and no folders.
    if not subfolders(root / "train"):
        if val:
            raise DataError(
                f"{root} has {val.name}/ with class folders, but no train/ with class folders",
                f"add train/, or give {val} to divide that",
            )
        names, train = _read_classes(root, root, max_pixels)
        return Source(name, names, train, val=None)
    names, train = _read_classes(root, root / "train", max_pixels)
    if val is None:
        return Source(name, names, train, val=None)
    val_names, val_reader = _read_classes(root, val, max_pixels)
    if val_names != names:
        differing = sorted(set(names) ^ set(val_names))
        shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
        raise DataError(
            f"{root}: train/ and {val.name}/ must have the same class folders; only one of them "
            f"has {shown}"
        )
    return Source(name, names, train, val_reader)


def open_unlabelled(root: Path, *, max_pixels: int = MAX_PIXELS) -> Source:
    """Open a folder of images without labels: every image at any depth.

    Where it has ``train/``, only the images in there are trained on, and those in ``val/``,
    ``valid/``, ``validation/`` or ``test/`` beside it are evaluated on; with labels, if that
    folder has two class folders or more.

    Args:
        root: A folder that exists.
        max_pixels: Images of more count as unreadable.

    Raises:
        DataError: If there are no images, or none to evaluate on in a folder for that.
    """
    name = root.resolve().name
    if not (root / "train").is_dir():
        return Source(name, (), _unlabelled(root, root, max_pixels), val=None)
    train = _unlabelled(root, root / "train", max_pixels)
    val = next((root / name for name in VAL_NAMES if (root / name).is_dir()), None)
    if val is None:
        return Source(name, (), train, val=None)
    if len(subfolders(val)) > 1:
        names, reader = _read_classes(root, val, max_pixels)
        return Source(name, names, train, reader)
    return Source(name, (), train, _unlabelled(root, val, max_pixels))


def _unlabelled(root: Path, folder: Path, max_pixels: int) -> FolderReader:
    images = _images(folder)
    if not images:
        raise DataError(
            f"{folder} holds no images",
            f"images are files that end in {', '.join(sorted(EXTENSIONS))}",
        )
    return FolderReader(images, None, root=root, max_pixels=max_pixels)


def missing_folder(path: Path) -> DataError:
    """Say that a folder does not exist, and which one nearby may have been meant."""
    parent, name = path.absolute().parent, path.name
    while not parent.is_dir():
        parent, name = parent.parent, parent.name
    hint = nearest(name, [folder.name for folder in subfolders(parent)], or_list=False)
    return DataError(f"folder {path} does not exist", hint and f"{hint} (in {parent})")


def subfolders(folder: Path) -> list[Path]:
    """Sorted folders in a folder, without hidden ones; none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read_classes(
    root: Path, parent: Path, max_pixels: int
) -> tuple[tuple[str, ...], FolderReader]:
    """Names of the classes in a folder, and a reader of their images, class after class."""
    folders = subfolders(parent)
    if len(folders) < 2:
        raise DataError(
            f"{parent} has {len(folders)} class folders, a classifier needs at least 2",
            "put the images of each class into a folder of its own, named after the class; images "
            "without labels take data.labels = false, and method.task_weight = 0",
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        images = _images(folder)
        if not images:
            raise DataError(
                f"class folder {folder} holds no images",
                f"images are files that end in {', '.join(sorted(EXTENSIONS))}",
            )
        paths += images
        labels += [label] * len(images)
    reader = FolderReader(paths, labels, root=root, max_pixels=max_pixels)
    return tuple(folder.name for folder in folders), reader


def _images(folder: Path) -> list[Path]:
    """Sorted image files in a folder and its subfolders."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
