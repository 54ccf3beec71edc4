"""torchvision's sets of labelled images, by name."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from anykd.errors import DataError, first_line
from anykd.files import expanded

from .downloads import cache_folder, fetched_into
from .folder import FolderReader, missing_folder
from .images import MAX_PIXELS
from .reader import ArrayReader, Source

__all__ = ["TORCHVISION_SETS", "open_torchvision"]

Files = Iterable[tuple[str | Path, int]]


@dataclass(frozen=True)
class TorchvisionSet:
    """One of torchvision's data sets.

    Attributes:
        make: Its class.
        layout: What must be in the folder that is given.
        train: Arguments that choose the images to train on.
        val: Arguments that choose those to evaluate on; none where the set is not divided.
        files: Finds the image files and labels of a set; none where it holds arrays.
        options: Further arguments of both.
        transposed: Whether rows and columns of its arrays are exchanged.
        can_download: Whether torchvision still knows where to fetch it.
    """

    make: Callable[..., Any]
    layout: tuple[str, ...]
    train: Mapping[str, Any] = field(default_factory=lambda: {"split": "train"})
    val: Mapping[str, Any] | None = field(default_factory=lambda: {"split": "test"})
    files: Callable[[Any], Files] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    transposed: bool = False
    can_download: bool = True


def open_torchvision(
    name: str, root: str, *, labels: bool = True, max_pixels: int = MAX_PIXELS
) -> Source:
    """Open a data set that torchvision knows, with its own split where it has one.

    Args:
        name: A key of `TORCHVISION_SETS`.
        root: Folder that holds it as torchvision lays it out; nothing is downloaded to it. Empty
            downloads to the user's cache; under several ranks let one come first.
        labels: Unused: all of these have labels.
        max_pixels: Files of more count as unreadable.

    Raises:
        DataError: If the files are not there, not whole, or cannot be downloaded.
    """
    known = TORCHVISION_SETS[name]
    if root:
        folder = expanded(root)
        if not folder.is_dir():
            raise missing_folder(folder)
    else:
        folder = cache_folder() / name
        if not folder.is_dir():
            _download(name, known, folder)
    if missing := [part for part in known.layout if not (folder / part).exists()]:
        raise DataError(
            f"{folder} does not hold {name} as torchvision lays it out: no {', '.join(missing)} "
            "in it",
            f"'{name}' without a folder downloads it to {cache_folder() / name}"
            if known.can_download
            else "torchvision cannot download it any more: put the files there by hand",
        )
    readers, names = [], ()
    for arguments in (known.train, known.val):
        if arguments is not None:
            try:
                dataset = _make(known, folder, arguments, download=False)
                reader, classes = _read(name, known, dataset, arguments, folder, max_pixels)
            except Exception as error:  # what is not as torchvision expects fails in many ways
                raise DataError(
                    f"the files of {name} in {folder} are not whole or not the official ones: "
                    f"{first_line(error)}",
                    "fetch them again, or leave the folder out"
                    if known.can_download
                    else "fetch them again",
                ) from None
            readers.append(reader)
            names = names or classes
    return Source(name, names, readers[0], readers[1] if known.val is not None else None)


def _download(name: str, known: TorchvisionSet, folder: Path) -> None:
    if not known.can_download:
        raise DataError(
            f"{name} can no longer be downloaded: its publisher has taken it down",
            f"write {name}:ROOT, where ROOT has {', '.join(known.layout)}",
        )
    with fetched_into(folder) as partial:
        try:
            for arguments in (known.train, known.val):
                if arguments is not None:
                    _make(known, partial, arguments, download=True)
        except Exception as error:
            raise DataError(
                f"{name} cannot be downloaded to {folder}: {first_line(error)}",
                f"fetch it by hand, and write {name}:ROOT, where ROOT has "
                f"{', '.join(known.layout)}",
            ) from None


def _make(
    known: TorchvisionSet, folder: Path, arguments: Mapping[str, Any], *, download: bool
) -> Any:
    # Results go to stdout, and torchvision is not bound to keep its messages off it.
    with contextlib.redirect_stdout(sys.stderr):
        return known.make(folder, **arguments, **known.options, download=download)


def _read(
    name: str,
    known: TorchvisionSet,
    dataset: Any,
    arguments: Mapping[str, Any],
    folder: Path,
    max_pixels: int,
) -> tuple[ArrayReader | FolderReader, tuple[str, ...]]:
    """Give a reader of one part, and names of the classes: numbers where torchvision has none."""
    if known.files is None:
        labels = getattr(dataset, "targets", None)
        labels = np.asarray(dataset.labels if labels is None else labels).tolist()
        pixels = np.asarray(dataset.data)
        if pixels.ndim == 3:  # grey: all three channels are one, and take its memory once
            pixels = pixels.swapaxes(1, 2) if known.transposed else pixels
            images = np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
        else:
            images = pixels.transpose(0, 2, 3, 1)
        part = "train" if arguments is known.train else "test"
        reader = ArrayReader(images, labels, part=part)
    else:
        found = [(Path(path), int(label)) for path, label in known.files(dataset)]
        if known.val is None:  # torchvision takes some of these as the disk lists them
            found.sort()
        paths, labels = [path for path, _ in found], [label for _, label in found]
        reader = FolderReader(paths, labels, root=folder, max_pixels=max_pixels)
    if not labels:
        raise ValueError("there are no images")
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    names = range(max(labels) + 1) if classes is None else classes
    # Imagenette has several names for a class.
    return reader, tuple(str(one[0] if isinstance(one, tuple) else one) for one in names)


def _samples(dataset: Any) -> Files:
    return dataset._samples if hasattr(dataset, "_samples") else dataset.samples


def _image_files(dataset: Any) -> Files:
    paths = dataset._image_files if hasattr(dataset, "_image_files") else dataset._images
    return zip(paths, dataset._labels, strict=True)


def _class_folders(dataset: Any) -> Files:
    (folder,) = Path(dataset.root).glob("*_ObjectCategories")
    for label, name in enumerate(dataset.categories):
        yield from ((path, label) for path in (folder / name).glob("*.jpg"))


_BY_FLAG: dict[str, Any] = {"train": {"train": True}, "val": {"train": False}}
_TRAIN_VAL: dict[str, Any] = {"val": {"split": "val"}}
_UNDIVIDED: dict[str, Any] = {"train": {}, "val": None}


def _digits(folder: str) -> tuple[str, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/raw/{part}-ubyte" for part in parts)


TORCHVISION_SETS: dict[str, TorchvisionSet] = {
    "caltech101": TorchvisionSet(
        datasets.Caltech101,
        ("caltech101/101_ObjectCategories",),
        files=_class_folders,
        **_UNDIVIDED,
    ),
    "caltech256": TorchvisionSet(
        datasets.Caltech256,
        ("caltech256/256_ObjectCategories",),
        files=_class_folders,
        **_UNDIVIDED,
    ),
    "country211": TorchvisionSet(
        datasets.Country211,
        ("country211/train", "country211/valid"),
        val={"split": "valid"},
        files=_samples,
    ),
    "dtd": TorchvisionSet(
        datasets.DTD, ("dtd/dtd/images", "dtd/dtd/labels"), files=_image_files, **_TRAIN_VAL
    ),
    "emnist": TorchvisionSet(
        datasets.EMNIST,
        tuple(
            f"EMNIST/raw/emnist-balanced-{part}-ubyte"
            for part in (
                "train-images-idx3",
                "train-labels-idx1",
                "test-images-idx3",
                "test-labels-idx1",
            )
        ),
        options={"split": "balanced"},
        transposed=True,  # as its publisher stores it
        **_BY_FLAG,
    ),
    "eurosat": TorchvisionSet(datasets.EuroSAT, ("eurosat/2750",), files=_samples, **_UNDIVIDED),
    "fashionmnist": TorchvisionSet(datasets.FashionMNIST, _digits("FashionMNIST"), **_BY_FLAG),
    "fgvcaircraft": TorchvisionSet(
        datasets.FGVCAircraft, ("fgvc-aircraft-2013b/data",), files=_image_files, **_TRAIN_VAL
    ),
    "flowers102": TorchvisionSet(
        datasets.Flowers102,
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        files=_image_files,
        **_TRAIN_VAL,
    ),
    "food101": TorchvisionSet(
        datasets.Food101, ("food-101/images", "food-101/meta"), files=_image_files
    ),
    "gtsrb": TorchvisionSet(
        datasets.GTSRB,
        (
            "gtsrb/GTSRB/Training",
            "gtsrb/GTSRB/Final_Test/Images",
            "gtsrb/GT-final_test.csv",
        ),
        files=_samples,
    ),
    "imagenette": TorchvisionSet(
        datasets.Imagenette,
        ("imagenette2/train", "imagenette2/val"),
        files=_samples,
        **_TRAIN_VAL,
    ),
    "kmnist": TorchvisionSet(datasets.KMNIST, _digits("KMNIST"), **_BY_FLAG),
    "mnist": TorchvisionSet(datasets.MNIST, _digits("MNIST"), **_BY_FLAG),
    "oxfordiiitpet": TorchvisionSet(
        datasets.OxfordIIITPet,
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        train={"split": "trainval"},
        files=_image_files,
    ),
    "stanfordcars": TorchvisionSet(
        datasets.StanfordCars,
        (
            "stanford_cars/devkit",
            "stanford_cars/cars_train",
            "stanford_cars/cars_test",
            "stanford_cars/cars_test_annos_withlabels.mat",
        ),
        files=_samples,
        can_download=False,
    ),
    "stl10": TorchvisionSet(datasets.STL10, ("stl10_binary",)),
    "sun397": TorchvisionSet(datasets.SUN397, ("SUN397",), files=_image_files, **_UNDIVIDED),
    "svhn": TorchvisionSet(datasets.SVHN, ("train_32x32.mat", "test_32x32.mat")),
    "usps": TorchvisionSet(datasets.USPS, ("usps.bz2", "usps.t.bz2"), **_BY_FLAG),
}
"""What there is besides CIFAR, by the name that a data spec gives it."""
