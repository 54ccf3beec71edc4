"""Batches for training and for evaluation, one rank's share at a time."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import final

import numpy as np
import torch
from torch.utils.data import DataLoader

from anykd.errors import DataError
from anykd.types import Batch

from .augment import AugmentConfig
from .batches import BatchKey, EvalBatches, TrainBatches, create_mixing
from .reader import Reader
from .seeded import Stream
from .views import eval_view, train_view

__all__ = ["EvalLoader", "TooFewImagesError", "TrainLoader"]

# Up to so many images in memory, starting worker processes costs more than they save.
_FEW_IMAGES = 5_000
_MAX_WORKERS = 8


@final
class TooFewImagesError(DataError):
    """There are fewer training images than one step takes."""


@final
class TrainLoader:
    """One rank's share of shuffled, augmented batches.

    A batch is a pure function of (seed, epoch, step): neither the number of workers, nor what was
    drawn before, nor the state of the global generators changes it, and those are left as they
    were. Each step takes the next ``batch_size · world_size`` images of the epoch's order; a rank
    has its slice of them, so the images and views of a step are the same for any number of ranks.
    Images left over at the end of an epoch sit it out.

    Mixup and cutmix are drawn once per batch and rank and mix the rank's own images, after
    erasing; so with them the mixtures do depend on the number of ranks.

    Args:
        reader: The training images.
        num_classes: Width of the labels.
        image_size: Height and width in pixels, or one number for both.
        batch_size: Images per step on this rank.
        augment: How images are varied.
        label_smoothing: s in [0, 1): a label is s/C, plus 1 - s for its class.
        seed: Decides the order and every view.
        workers: Loader processes; None as in `DataConfig`.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        steps_per_epoch: Batches of each epoch, the same on every rank.

    Raises:
        DataError: If the images do not fill one step.
        RecipeError: If images are to be mixed in pairs and the batch size is odd.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        num_classes: int,
        image_size: int | tuple[int, int],
        batch_size: int,
        augment: AugmentConfig,
        label_smoothing: float,
        seed: int,
        workers: int | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        images_per_step = batch_size * world_size
        self.steps_per_epoch = len(reader) // images_per_step
        if not self.steps_per_epoch:
            raise TooFewImagesError(
                f"{len(reader)} training images do not fill one batch of {images_per_step}",
                f"lower train.batch_size to {len(reader)} or less",
            )
        self._num_images = len(reader)
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        mixing = create_mixing(
            augment,
            batch_size=batch_size,
            num_classes=max(num_classes, 1),  # mixing goes on where nothing has a label
            label_smoothing=label_smoothing,
        )
        erasing = augment.resolved().erasing or 0.0
        view = train_view(augment, image_size)
        self._plan = _Plan()
        self._loader = _create_loader(
            TrainBatches(reader, view, erasing, mixing, seed, rank), self._plan, workers
        )

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch. Leave one epoch before beginning the next.

        Args:
            epoch: From 0.
            skip: Steps to leave out at the beginning, at no cost; those after them are what they
                would have been.
        """
        rng = np.random.default_rng((self._seed, Stream.ORDER, epoch))
        order = rng.permutation(self._num_images)
        steps = range(skip, self.steps_per_epoch)
        keys = [BatchKey(epoch, step, self._share(order, step)) for step in steps]
        # The loader reads the plan when an epoch begins: worker processes outlive epochs.
        self._plan.keys = keys
        for batch in _batches(self._loader):
            assert self._plan.keys is keys, "another epoch was begun before this one was left"
            yield batch

    def _share(self, order: np.ndarray, step: int) -> list[int]:
        """This rank's positions of a step."""
        start = (step * self._world_size + self._rank) * self._batch_size
        return order[start : start + self._batch_size].tolist()


@final
class EvalLoader:
    """One rank's share of a data set, in plain crops; each image once over all ranks.

    Rank r has positions r, r + world_size, and so on. No image is repeated to make the shares
    equal, so counts summed over ranks are exact; a rank may have one image less than another.

    Args:
        reader: The images to evaluate on.
        num_classes: Width of the labels, which are one-hot.
        image_size: Height and width in pixels, or one number for both.
        batch_size: Images per batch on this rank; the last batch may be smaller.
        augment: Its ``crop_pct`` and ``interpolation`` count.
        workers: Loader processes; None as in `DataConfig`.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        num_samples: Images of this rank.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        num_classes: int,
        image_size: int | tuple[int, int],
        batch_size: int,
        augment: AugmentConfig,
        workers: int | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        positions = range(rank, len(reader), world_size)
        self.num_samples = len(positions)
        starts = range(0, len(positions), batch_size)
        plan = _Plan(
            [
                BatchKey(0, step, list(positions[start : start + batch_size]))
                for step, start in enumerate(starts)
            ]
        )
        view = eval_view(augment, image_size)
        self._loader = _create_loader(EvalBatches(reader, view, num_classes), plan, workers)

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self._loader)


def choose_workers(workers: int | None, reader: Reader) -> int:
    """Number of loader processes where none is given, as `DataConfig` says."""
    if workers is not None:
        return workers
    if reader.in_memory and len(reader) <= _FEW_IMAGES:
        return 0
    if hasattr(os, "sched_getaffinity"):  # cores of this process; macOS tells all cores only
        return min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
    return min(_MAX_WORKERS, os.cpu_count() or 1)


class _Plan:
    """The sampler of a loader: keys that may be exchanged between epochs."""

    def __init__(self, keys: Sequence[BatchKey] = ()) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)


def _create_loader(
    batches: TrainBatches | EvalBatches, plan: _Plan, workers: int | None
) -> DataLoader:
    """Connect keys and batches through worker processes, which live as long as the loader."""
    num_workers = choose_workers(workers, batches.reader)
    return DataLoader(
        batches,
        batch_size=None,  # a key is a whole batch already
        sampler=plan,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Without a generator of its own, every epoch would draw from torch's global one.
        generator=torch.Generator(),
    )


def _batches(loader: Iterable) -> Iterator[Batch]:
    """Unpack what a loader gives, and raise what it met."""
    for result in loader:
        if isinstance(result, DataError):
            try:
                raise result
            finally:
                # Else the error holds this frame and the frame the error, until the garbage
                # collector finds them, which takes torch 5 s per loader to end its workers.
                del result
        yield Batch(*result)
