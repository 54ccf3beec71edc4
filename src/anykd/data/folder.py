"""Folders of class folders, and what to say where a folder is not there."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image, ImageOps

from anykd.errors import DataError, nearest

from .reader import Sample, Source

__all__ = ["FolderReader", "missing_folder", "open_folder", "open_unlabelled", "subfolders"]

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
VAL_NAMES = ("val", "valid", "validation", "test")
"""Names of the folder to evaluate on; the first that exists is taken."""


@final
class FolderReader:
    """Image files, opened when they are asked for.

    Args:
        paths: One file per image.
        labels: Class index of each; None where nothing is known.
    """

    in_memory = False

    def __init__(self, paths: Sequence[Path], labels: Sequence[int] | None) -> None:
        assert labels is None or len(paths) == len(labels)
        self._paths = paths
        self.labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    def file_size(self, position: int) -> int:
        """Bytes of an image's file, without opening it; 0 where it is gone."""
        path = self._paths[position]
        return path.stat().st_size if path.is_file() else 0

    def __getitem__(self, position: int) -> Sample:
        label = None if self.labels is None else self.labels[position]
        return Sample(_read_rgb(self._paths[position]), label, position)


def open_folder(root: Path) -> Source:
    """Open a folder whose class folders hold images, at any depth.

    It is divided already if it has ``train/`` with class folders, and beside it one of ``val/``,
    ``valid/``, ``validation/`` or ``test/``. Hidden files and folders, and files that are not
    images by their extension, are left out. Classes are sorted by name.

    Args:
        root: A folder that exists.

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
        names, train = _read_classes(root)
        return Source(name, names, train, val=None)
    names, train = _read_classes(root / "train")
    if val is None:
        return Source(name, names, train, val=None)
    val_names, val_reader = _read_classes(val)
    if val_names != names:
        differing = sorted(set(names) ^ set(val_names))
        shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
        raise DataError(
            f"{root}: train/ and {val.name}/ must have the same class folders; only one of them "
            f"has {shown}"
        )
    return Source(name, names, train, val_reader)


def open_unlabelled(root: Path) -> Source:
    """Open a folder of images without labels: every image at any depth.

    Where it has ``train/``, only the images in there are trained on, and those in ``val/``,
    ``valid/``, ``validation/`` or ``test/`` beside it are evaluated on; with labels, if that
    folder has two class folders or more.

    Args:
        root: A folder that exists.

    Raises:
        DataError: If there are no images, or none to evaluate on in a folder for that.
    """
    name = root.resolve().name
    if not (root / "train").is_dir():
        return Source(name, (), _unlabelled(root), val=None)
    train = _unlabelled(root / "train")
    val = next((root / name for name in VAL_NAMES if (root / name).is_dir()), None)
    if val is None:
        return Source(name, (), train, val=None)
    if len(subfolders(val)) > 1:
        names, reader = _read_classes(val)
        return Source(name, names, train, reader)
    return Source(name, (), train, _unlabelled(val))


def _unlabelled(folder: Path) -> FolderReader:
    images = _images(folder)
    if not images:
        raise DataError(
            f"{folder} holds no images",
            f"images are files that end in {', '.join(sorted(EXTENSIONS))}",
        )
    return FolderReader(images, None)


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


def _read_classes(root: Path) -> tuple[tuple[str, ...], FolderReader]:
    """Names of the classes, and a reader of their images, class after class."""
    folders = subfolders(root)
    if len(folders) < 2:
        raise DataError(
            f"{root} has {len(folders)} class folders, a classifier needs at least 2",
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
    return tuple(folder.name for folder in folders), FolderReader(paths, labels)


def _images(folder: Path) -> list[Path]:
    """Sorted image files in a folder and its subfolders."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _read_rgb(path: Path) -> Image.Image:
    """Read an image the right way up, as 8-bit RGB."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):
                # Pillow would clip 16-bit grey at 255, which turns most of it white.
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # going straight to RGB makes Pillow warn
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for bad files
        raise DataError(
            f"{path} cannot be read as an image: {error}", "mend or remove the file"
        ) from None
