"""From a data spec to a data set that is ready for training."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from anykd.config import FrozenConfig
from anykd.errors import DataError, nearest
from anykd.files import expanded

from .bundled import open_digits, open_synthetic
from .cifar import open_cifar
from .decoded import decode_once
from .faults import BadImagePolicy
from .folder import missing_folder, open_folder, open_unlabelled, subfolders
from .hub import open_hub, open_parquet
from .images import MAX_PIXELS
from .on_device import ViewsOn
from .reader import DataSplits, JoinedReader, Reader, Source, SubsetReader, UnlabelledReader
from .shards import open_shards
from .split import hold_out, keep
from .torchvision_sets import TORCHVISION_SETS, open_torchvision

__all__ = ["DataConfig", "Split", "open_data", "open_split"]

Split = Literal["val", "train", "all"]
"""Images to evaluate on: those held out, those trained on, or all that the source has."""

_BUNDLED: dict[str, Callable[[str], Source]] = {
    "digits": open_digits,
    "synthetic": open_synthetic,
    "cifar10": partial(open_cifar, "cifar10"),
    "cifar100": partial(open_cifar, "cifar100"),
}
"""Kinds of specs whose images are all labelled, and of a size that is known."""
_FILES: dict[str, Callable[..., Source]] = {
    **{name: partial(open_torchvision, name) for name in TORCHVISION_SETS},
    "hf": open_hub,
    "parquet": open_parquet,
    "wds": open_shards,
}
"""Kinds whose images may have no labels, or be too large."""
_KINDS = (*_BUNDLED, *_FILES)
_FORMS = (
    "digits, synthetic:CLASSESxN, cifar10[:ROOT], cifar100[:ROOT] and torchvision's other sets, "
    "hf:NAME[@SPLIT], parquet:PATH, wds:URL"
)


class DataConfig(FrozenConfig):
    """Which images to learn from and to evaluate on."""

    source: Annotated[str, Field(min_length=1)]
    """Data spec: digits, synthetic:CLASSESxN, cifar10[:ROOT], cifar100[:ROOT] or another set of
    torchvision, hf:NAME[@SPLIT], parquet:PATH, wds:URL, or the path of a folder of class
    folders."""
    labels: bool = True
    """False trains without labels. A folder then gives every image in it, at any depth; only a
    folder of class folders beside it, such as val/, still has classes. Other sources keep the
    labels of the images that they evaluate on, where they have some."""
    limit: PositiveInt | None = None
    """Training images kept, each class its share; None keeps all."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images held out to evaluate on where the source has no split of its own."""
    split_seed: NonNegativeInt = 0
    """Decides which images are held out and kept. It is not the recipe's seed, so that runs with
    other seeds, and their teacher, hold out the same images."""
    workers: NonNegativeInt | None = None
    """Loader processes per rank. None takes 0 for at most 5,000 images in memory, where starting
    processes costs more than it saves; otherwise one per CPU core, at most 8. No number changes
    what is learnt."""
    prefetch: PositiveInt = 2
    """Batches that each worker prepares ahead."""
    pin_memory: bool | None = None
    """Keep batches in pinned memory, which a GPU copies faster from; None does where there is a
    GPU."""
    persistent_workers: bool = True
    """Let workers live from epoch to epoch; false starts them anew, which frees what they hold."""
    views_on: ViewsOn = "auto"
    """Who crops, recolours and mixes the training images: workers does it in the loader processes,
    device for whole batches where the models are, and auto takes the device where that is a GPU and
    can do all that `augment` asks for. Either way a view is drawn the same, and its crop is the
    same to a level or two of 255."""
    drop_last: bool = True
    """Let images that fill no batch sit an epoch out, others each time. False gives them as one
    more, smaller batch, shared over the ranks as evenly as possible; mixup and cutmix cannot mix
    it."""
    bad_images: BadImagePolicy = "replace"
    """What becomes of training images that cannot be read: replace shows another of the same class
    instead, drop makes the batch smaller, and stop ends the run, also at one that is held out.
    Otherwise those are left out of the score."""
    max_bad_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the training images, and of those held out, that may be unreadable before the run
    stops. Each image counts once; what several ranks have met is added up at each checkpoint."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Pixels of a file's image from which on it counts as unreadable, before it is decoded: small
    files can hold images that fill the memory. The default is where Pillow begins to warn."""
    decoded: Annotated[str, Field(min_length=1)] | None = None
    """Folder for the pixels of all images, 3 bytes a pixel: written in the first run, and read in
    the place of the files from then on. None decodes the files in every epoch. Images in memory
    need no such folder."""

    @property
    def loading(self) -> dict[str, Any]:
        """What both loaders are told, by the names of their arguments."""
        return {
            "workers": self.workers,
            "prefetch": self.prefetch,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.persistent_workers,
            "bad_images": self.bad_images,
            "max_bad_fraction": self.max_bad_fraction,
        }


def open_data(config: DataConfig) -> DataSplits:
    """Open a data set, hold images out if it has no split of its own, and apply the limit.

    The same config gives the same images in the same order. A download is not guarded
    against several processes at once: under several ranks let one come first.

    Args:
        config: What to open.

    Raises:
        DataError: If there is no such data, or it is not fit to train a classifier.
    """
    source = _opened(config)
    train, val = source.train, source.val
    if val is None:
        kept, held_out = hold_out(_groups(train), config.val_fraction, seed=config.split_seed)
        train, val = SubsetReader(train, kept), SubsetReader(train, held_out)
    if config.limit is not None and config.limit < len(train):
        train = SubsetReader(train, keep(_groups(train), config.limit, seed=config.split_seed))
    if not config.labels:
        train = UnlabelledReader(train)
    return DataSplits(source.name, source.class_names, train, val)


def open_split(config: DataConfig, split: Split) -> DataSplits:
    """Open a data set to evaluate on one part of it.

    Args:
        config: What to open.
        split: ``all`` holds nothing out and applies no limit.

    Returns:
        Splits whose ``val`` are the images asked for.

    Raises:
        DataError: As `open_data` does.
    """
    if split != "all":
        splits = open_data(config)
        return splits if split == "val" else replace(splits, val=splits.train)
    source = _opened(config)
    whole = source.train if source.val is None else JoinedReader(source.train, source.val)
    return DataSplits(source.name, source.class_names, whole, whole)


def _groups(reader: Reader) -> Sequence[int]:
    """The classes that are to keep their shares; images without labels are of one group."""
    return [0] * len(reader) if reader.labels is None else reader.labels


def _opened(config: DataConfig) -> Source:
    """Open what a config names, decoded where it says so."""
    source = _open(config)
    if config.decoded is None:
        return source
    folder, images = expanded(config.decoded), expanded(config.source)
    if images.is_dir() and folder.resolve().is_relative_to(images.resolve()):
        raise DataError(
            f"data.decoded is {folder}, which lies among the images themselves, in {images}",
            "give a folder elsewhere",
        )
    train, val = (
        None if reader is None else decode_once(reader, folder, max_pixels=config.max_pixels)
        for reader in (source.train, source.val)
    )
    assert train is not None
    return replace(source, train=train, val=val)


def _open(config: DataConfig) -> Source:
    """Find out what a spec names, and open it."""
    spec = config.source
    kind, _, argument = spec.partition(":")
    options = {"labels": config.labels, "max_pixels": config.max_pixels}
    if kind in _KINDS:
        source = _BUNDLED[kind](argument) if kind in _BUNDLED else _FILES[kind](argument, **options)
        _require_labels_in_range(source)
        return source
    path = expanded(spec)
    if path.is_dir():
        open_path = open_folder if config.labels else open_unlabelled
        return open_path(path, max_pixels=config.max_pixels)
    if path.exists():
        raise DataError(f"{path} is a file; data is a folder of class folders", _file_hint(path))
    if _is_path(spec):
        raise missing_folder(path)
    here = [folder.name for folder in subfolders(Path())]
    raise DataError(
        f"no data is called {spec!r}: known are {_FORMS}, or the path of a folder of class folders",
        nearest(re.split(r"[:;,=@/]", spec)[0].lower(), [*_KINDS, *here]),
    )


def _is_path(spec: str) -> bool:
    """Whether a spec that names nothing looks like a path, and not like a kind that is misspelt."""
    before, colon, _ = spec.partition(":")
    return spec.startswith((".", "~", "/")) or ("/" in spec and ("/" in before or not colon))


def _require_labels_in_range(source: Source) -> None:
    """Refuse labels that name no class; those of folders cannot be wrong."""
    for reader in (source.train, source.val):
        labels = np.asarray([] if reader is None or reader.labels is None else reader.labels)
        wrong = labels[(labels < 0) | (labels >= len(source.class_names))]
        if wrong.size:
            raise DataError(
                f"{wrong.size} of {labels.size} labels of {source.name} name no class, such as "
                f"{wrong[0]}: its classes are 0 to {len(source.class_names) - 1}",
                "mend the labels: classes are counted from 0",
            )


def _file_hint(path: Path) -> str:
    for ending, spec in ((".parquet", "parquet"), (".tar", "wds")):
        if path.suffix == ending:
            return f"write {spec}:{path}"
    return f"besides folders there are {_FORMS}"
