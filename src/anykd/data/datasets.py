"""From a data spec to a data set that is ready for training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from anykd.config import FrozenConfig
from anykd.errors import DataError, nearest

from .bundled import open_digits, open_synthetic
from .cifar import open_cifar
from .folder import missing_folder, open_folder, open_unlabelled, subfolders
from .reader import DataSplits, JoinedReader, Reader, Source, SubsetReader, UnlabelledReader
from .split import hold_out, keep

__all__ = ["DataConfig", "Split", "open_data", "open_split"]

Split = Literal["val", "train", "all"]
"""Images to evaluate on: those held out, those trained on, or all that the source has."""

_KINDS: dict[str, Callable[[str], Source]] = {
    "cifar10": partial(open_cifar, "cifar10"),
    "cifar100": partial(open_cifar, "cifar100"),
    "digits": open_digits,
    "synthetic": open_synthetic,
}
_FORMS = "digits, cifar10[:ROOT], cifar100[:ROOT], synthetic:CLASSESxN"


class DataConfig(FrozenConfig):
    """Which images to learn from and to evaluate on."""

    source: Annotated[str, Field(min_length=1)]
    """Data spec: digits, cifar10[:ROOT], cifar100[:ROOT], synthetic:CLASSESxN, or the path of a
    folder of class folders."""
    labels: bool = True
    """False trains without labels. A folder then gives every image in it, at any depth; only a
    folder of class folders beside it, such as val/, still has classes. Other sources keep the
    labels of the images that they evaluate on."""
    limit: PositiveInt | None = None
    """Training images kept, each class its share; None keeps all."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images held out to evaluate on where the source has no split of its own."""
    split_seed: NonNegativeInt = 0
    """Decides which images are held out and kept. It is not the recipe's seed, so that runs with
    other seeds, and their teacher, hold out the same images."""
    workers: NonNegativeInt | None = None
    """Loader processes per rank. None takes 0 for at most 5,000 images in memory, where starting
    processes costs more than it saves; otherwise one per CPU core, at most 8."""


def open_data(config: DataConfig) -> DataSplits:
    """Open a data set, hold images out if it has no split of its own, and apply the limit.

    The same config gives the same images in the same order. A download is not guarded
    against several processes at once: under several ranks let one come first.

    Args:
        config: What to open.

    Raises:
        DataError: If there is no such data, or it is not fit to train a classifier.
    """
    source = _open(config.source, labelled=config.labels)
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
    source = _open(config.source, labelled=config.labels)
    whole = source.train if source.val is None else JoinedReader(source.train, source.val)
    return DataSplits(source.name, source.class_names, whole, whole)


def _groups(reader: Reader) -> Sequence[int]:
    """The classes that are to keep their shares; images without labels are of one group."""
    return [0] * len(reader) if reader.labels is None else reader.labels


def _open(spec: str, *, labelled: bool) -> Source:
    """Find out what a spec names, and open it."""
    kind, _, argument = spec.partition(":")
    if kind in _KINDS:
        return _KINDS[kind](argument)
    path = Path(spec).expanduser()
    if path.is_dir():
        return open_folder(path) if labelled else open_unlabelled(path)
    if path.exists():
        raise DataError(f"{path} is a file; data is a folder of class folders", _forms_hint())
    if len(path.parts) > 1 or spec.startswith((".", "~")):
        raise missing_folder(path)
    here = [folder.name for folder in subfolders(Path())]
    raise DataError(
        f"no data is called {spec!r}: known are {_FORMS}, or the path of a folder of class folders",
        nearest(kind, [*_KINDS, *here]),
    )


def _forms_hint() -> str:
    return f"besides folders there are {_FORMS}"
