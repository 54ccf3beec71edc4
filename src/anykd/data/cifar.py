"""CIFAR-10 and CIFAR-100, from torchvision's files or from tiles in WebP images."""

import contextlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from anykd.errors import DataError
from anykd.files import expanded

from .downloads import cache_folder
from .folder import missing_folder
from .images import read_rgb
from .reader import ArrayReader, Source

__all__ = ["open_cifar"]

CifarName = Literal["cifar10", "cifar100"]

_DATASETS: dict[CifarName, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_SIDE = 32  # pixels of an image
_GRID = 100  # images along each side of a tile file


def open_cifar(name: CifarName, root: str) -> Source:
    """Open CIFAR with its own split: 50,000 images to train on, 10,000 to evaluate on.

    Args:
        name: Which one; CIFAR-100 comes with its fine labels.
        root: Folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``, torchvision's
            layout, or for CIFAR-100 ``train-0.webp`` and so on, lossless tiles. Empty downloads to
            the user's cache; under several ranks let one come first.

    Raises:
        DataError: If the files are not there, not whole, or cannot be downloaded.
    """
    if not root:
        return _from_torchvision(name, cache_folder(), download=True)
    folder = expanded(root)
    if not folder.is_dir():
        raise missing_folder(folder)
    if name == "cifar100" and (folder / "labels.npz").is_file():
        return _from_tiles(folder)
    layout = _DATASETS[name].base_folder
    if not (folder / layout).is_dir():
        raise DataError(
            f"{folder} does not hold {name}: no {layout}/ in it"
            + (", and no labels.npz with tiles" if name == "cifar100" else ""),
            f"'{name}' without a folder downloads it to {cache_folder()}",
        )
    return _from_torchvision(name, folder, download=False)


def _from_torchvision(name: CifarName, root: Path, *, download: bool) -> Source:
    """Read the official pickles. torchvision compares their MD5 first, so unpickling is safe."""
    readers = []
    try:
        # Results go to stdout, and torchvision is not bound to keep its messages off it.
        with contextlib.redirect_stdout(sys.stderr):
            for train in (True, False):
                dataset = _DATASETS[name](root, train=train, download=download)
                part = "train" if train else "test"
                readers.append(ArrayReader(dataset.data, dataset.targets, part=part))
    except (OSError, RuntimeError) as error:
        if download:
            message = f"{name} cannot be downloaded to {root}: {error}"
            hint = f"fetch {_DATASETS[name].url}, unpack it, and write {name}:FOLDER"
        else:
            message = f"the files of {name} in {root} are not whole or not the official ones"
            hint = f"fetch {_DATASETS[name].url} again; its MD5 is {_DATASETS[name].tgz_md5}"
        raise DataError(message, hint) from None
    return Source(name, tuple(dataset.classes), *readers)


def _from_tiles(folder: Path) -> Source:
    """Read lossless WebP files, each a grid of 100x100 images in row-major order."""
    try:
        names = json.loads((folder / "class_names.json").read_text())["fine_label_names"]
        # NumPy leaves a file open that is no archive; this one is closed here.
        with (folder / "labels.npz").open("rb") as file, np.load(file) as labels:
            train, val = (
                ArrayReader(
                    np.concatenate([_read_tiles(folder / f"{split}-{i}.webp") for i in range(n)]),
                    labels[f"{split}_fine"].tolist(),
                    part=split,
                )
                for split, n in (("train", 5), ("test", 1))
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"the tiles of cifar100 in {folder} are not whole: {error}",
            "needed are train-0..4.webp, test-0.webp, labels.npz and class_names.json",
        ) from None
    return Source("cifar100", tuple(names), train, val)


def _read_tiles(path: Path) -> np.ndarray:
    """Cut one file into its 10,000 images."""
    grid = np.asarray(read_rgb(path))
    rows = grid.reshape(_GRID, _SIDE, _GRID, _SIDE, 3)
    return rows.swapaxes(1, 2).reshape(-1, _SIDE, _SIDE, 3)
