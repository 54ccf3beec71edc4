"""Batches for training and for evaluation, one rank's share at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch.utils.data import DataLoader

from anykd.errors import DataError, RecipeError
from anykd.types import Batch

from .augment import AugmentConfig
from .batches import BatchKey, EvalBatches, TrainBatches, create_mixing
from .faults import BadImagePolicy, BadImages, StandIns
from .reader import Reader
from .seeded import Stream
from .views import eval_view, train_view
from .workers import choose_workers, leave_signals_to_parent

__all__ = ["EvalLoader", "TooFewImagesError", "TrainLoader"]

_OUTCOMES: dict[BadImagePolicy, str] = {
    "replace": "another of its class takes its place",
    "drop": "its batches go without it",
    "stop": "training stops",
}


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
    Images left over at the end of an epoch sit it out, unless ``drop_last`` is false: then they are
    one more step, shared over the ranks as evenly as possible; fewer of them than ranks sit it out.

    Mixup and cutmix are drawn once per batch and rank and mix the rank's own images, after
    erasing; so with them the mixtures do depend on the number of ranks.

    An image that cannot be read counts once, however many epochs meet it. A rank knows what it has
    met itself and what `add_bad_images` has told it: exchange them over the ranks now and then.

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
        prefetch: Batches that each worker prepares ahead.
        pin_memory: Whether batches lie in pinned memory; None where there is a GPU.
        persistent_workers: Whether workers live from epoch to epoch.
        drop_last: Whether images that fill no batch sit an epoch out.
        bad_images: What becomes of images that cannot be read, as in `DataConfig`.
        max_bad_fraction: Share of all training images that may be such.
        on_bad_image: Called once for each, with a line to show.

    Attributes:
        steps_per_epoch: Batches of each epoch, the same on every rank.

    Raises:
        DataError: If the images do not fill one step.
        RecipeError: If images are to be mixed in pairs and a batch may be odd, or memory is to be
            pinned without a GPU.
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
        prefetch: int = 2,
        pin_memory: bool | None = None,
        persistent_workers: bool = True,
        drop_last: bool = True,
        bad_images: BadImagePolicy = "replace",
        max_bad_fraction: float = 0.01,
        on_bad_image: Callable[[str], None] | None = None,
    ) -> None:
        self._num_images = len(reader)
        self._images_per_step = batch_size * world_size
        self.steps_per_epoch, left = divmod(len(reader), self._images_per_step)
        if not drop_last and left >= world_size:
            self.steps_per_epoch += 1
        if not self.steps_per_epoch:
            raise _too_few(len(reader), self._images_per_step, world_size, drop_last=drop_last)
        _require_even_batches(augment, drop_last=drop_last, bad_images=bad_images)
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._drops_images = bad_images == "drop"
        mixing = create_mixing(
            augment,
            batch_size=batch_size,
            num_classes=max(num_classes, 1),  # mixing goes on where nothing has a label
            label_smoothing=label_smoothing,
        )
        erasing = augment.resolved().erasing or 0.0
        view = train_view(augment, image_size)
        stand_ins = StandIns(reader, seed)
        self._plan = _Plan()
        self._loader = _create_loader(
            TrainBatches(reader, view, erasing, mixing, seed, rank, bad_images, stand_ins),
            self._plan,
            workers=workers,
            prefetch=prefetch,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
        )
        self._bad = BadImages(
            len(reader),
            kind="training images",
            max_fraction=max_bad_fraction,
            outcome=_OUTCOMES[bad_images],
            tell=on_bad_image,
        )

    @property
    def bad_images(self) -> dict[int, str]:
        """What was wrong with each image that could not be read so far, by its index."""
        return self._bad.found

    def add_bad_images(self, found: Mapping[int, str]) -> None:
        """Count images that another rank could not read.

        Raises:
            DataError: If with them more have failed than may.
        """
        self._bad.add(found)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from, in values that JSON has."""
        return {"bad_images": {str(index): words for index, words in self._bad.found.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Know the images that could not be read before, without naming them again."""
        self._bad.found.update({int(key): words for key, words in state["bad_images"].items()})

    def is_even(self, step: int) -> bool:
        """Whether all ranks are sure to hold equally many images in a step of any epoch."""
        if self._world_size == 1:
            return True
        return not self._drops_images and self._count(step) % self._world_size == 0

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch. Leave one epoch before beginning the next.

        Args:
            epoch: From 0.
            skip: Steps to leave out at the beginning, at no cost; those after them are what they
                would have been.

        Raises:
            DataError: If an image cannot be read and the policy is to stop, no other can take its
                place, or more have failed than may.
        """
        rng = np.random.default_rng((self._seed, Stream.ORDER, epoch))
        order = rng.permutation(self._num_images)
        steps = range(skip, self.steps_per_epoch)
        keys = [BatchKey(epoch, step, self._share(order, step)) for step in steps]
        # The loader reads the plan when an epoch begins: worker processes outlive epochs.
        self._plan.keys = keys
        for batch in _batches(self._loader, self._bad):
            assert self._plan.keys is keys, "another epoch was begun before this one was left"
            yield batch

    def _count(self, step: int) -> int:
        """Images of a step, over all ranks."""
        return min(self._images_per_step, self._num_images - step * self._images_per_step)

    def _share(self, order: np.ndarray, step: int) -> list[int]:
        """This rank's positions of a step."""
        count, start = self._count(step), step * self._images_per_step
        first, end = (count * r // self._world_size for r in (self._rank, self._rank + 1))
        return order[start + first : start + end].tolist()


@final
class EvalLoader:
    """One rank's share of a data set, in plain crops; each image once over all ranks.

    Rank r has positions r, r + world_size, and so on. No image is repeated to make the shares
    equal, so counts summed over ranks are exact; a rank may have one image less than another.
    Images that cannot be read are left out, and those of all ranks exchanged by
    `add_bad_images`.

    Args:
        reader: The images to evaluate on.
        num_classes: Width of the labels, which are one-hot.
        image_size: Height and width in pixels, or one number for both.
        batch_size: Images per batch on this rank; the last batch may be smaller.
        augment: Its ``crop_pct`` and ``interpolation`` count.
        workers: Loader processes; None as in `DataConfig`.
        rank: Number of this process.
        world_size: Number of processes.
        prefetch: Batches that each worker prepares ahead.
        pin_memory: Whether batches lie in pinned memory; None where there is a GPU.
        persistent_workers: Whether workers live from one pass to the next.
        bad_images: "stop", or images that cannot be read are left out.
        max_bad_fraction: Share of all these images that may be such.
        on_bad_image: Called once for each, with a line to show.
        known: What other loaders of these images found bad, by index; this one adds to it.

    Attributes:
        num_samples: Images of this rank, with those that cannot be read.
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
        prefetch: int = 2,
        pin_memory: bool | None = None,
        persistent_workers: bool = True,
        bad_images: BadImagePolicy = "replace",
        max_bad_fraction: float = 0.01,
        on_bad_image: Callable[[str], None] | None = None,
        known: dict[int, str] | None = None,
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
        self._loader = _create_loader(
            EvalBatches(reader, view, num_classes, bad_images),
            plan,
            workers=workers,
            prefetch=prefetch,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
        )
        self._bad = BadImages(
            len(reader),
            kind="images",
            max_fraction=max_bad_fraction,
            outcome="no score counts it",
            tell=on_bad_image,
            found=known,
        )

    @property
    def bad_images(self) -> dict[int, str]:
        """What was wrong with each image that could not be read so far, by its index."""
        return self._bad.found

    def add_bad_images(self, found: Mapping[int, str]) -> None:
        """Count images that another rank could not read.

        Raises:
            DataError: If with them more have failed than may.
        """
        self._bad.add(found)

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self._loader, self._bad)


class _Plan:
    """The sampler of a loader: keys that may be exchanged between epochs."""

    def __init__(self, keys: Sequence[BatchKey] = ()) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)


def _create_loader(
    batches: TrainBatches | EvalBatches,
    plan: _Plan,
    *,
    workers: int | None,
    prefetch: int,
    pin_memory: bool | None,
    persistent_workers: bool,
) -> DataLoader:
    """Connect keys and batches through worker processes."""
    num_workers = choose_workers(workers, batches.reader)
    has_gpu = torch.cuda.is_available()
    if pin_memory and not has_gpu:
        raise RecipeError(
            "data.pin_memory is true, and there is no GPU that pinned memory would be copied to",
            "leave it out: memory is pinned where there is a GPU",
        )
    return DataLoader(
        batches,
        batch_size=None,  # a key is a whole batch already
        sampler=plan,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        persistent_workers=persistent_workers and num_workers > 0,
        pin_memory=has_gpu if pin_memory is None else pin_memory,
        worker_init_fn=leave_signals_to_parent,
        # Without a generator of its own, every epoch would draw from torch's global one.
        generator=torch.Generator(),
    )


def _batches(loader: DataLoader, bad_images: BadImages) -> Iterator[Batch]:
    """Unpack what a loader gives, raise what it met, and count what could not be read."""
    for result in loader:
        if isinstance(result, DataError):
            try:
                raise result
            finally:
                # Else the error holds this frame and the frame the error, until the garbage
                # collector finds them, which takes torch 5 s per loader to end its workers.
                del result
        batch, bad = result
        if bad:
            bad_images.add(bad)
        if batch is not None:
            yield Batch(*batch)


def _too_few(
    num_images: int, images_per_step: int, world_size: int, *, drop_last: bool
) -> TooFewImagesError:
    if not drop_last:
        return TooFewImagesError(
            f"{num_images} training images are fewer than the {world_size} ranks",
            "add images, or start fewer processes",
        )
    return TooFewImagesError(
        f"{num_images} training images do not fill one batch of {images_per_step}",
        f"lower train.batch_size to {num_images} or less",
    )


def _require_even_batches(
    augment: AugmentConfig, *, drop_last: bool, bad_images: BadImagePolicy
) -> None:
    """Refuse to mix images in pairs where one may be left over."""
    augment = augment.resolved()
    if not (augment.mixup or augment.cutmix) or (drop_last and bad_images != "drop"):
        return
    given, cure = "data.drop_last is false", "leave data.drop_last true"
    if drop_last:
        given, cure = "data.bad_images is 'drop'", "set data.bad_images = 'replace'"
    raise RecipeError(
        f"{given}, so that a batch may be of any size, and mixup and cutmix mix it in pairs",
        f"{cure}, or set augment.mixup and augment.cutmix to 0",
    )
