"""Batches for training and for evaluation, one rank's share at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch

from anykd.errors import DataError, RecipeError
from anykd.types import Batch

from .augment import AugmentConfig
from .batches import BatchKey, EvalBatches, TrainBatches
from .cache import Cache
from .faults import BadImagePolicy, BadImages
from .loading import Loader
from .on_device import DeviceViews, ViewsOn, made_by_workers
from .reader import Reader
from .seeded import Stream
from .train_views import Part, TrainViews
from .views import eval_view

__all__ = ["EvalLoader", "ReplayLoader", "TooFewImagesError", "TrainLoader"]

_OUTCOMES: dict[BadImagePolicy, str] = {
    "replace": "another of its class takes its place",
    "drop": "its batches go without it",
    "stop": "training stops",
}


@final
class TooFewImagesError(DataError):
    """There are fewer training images than one step takes."""


@final
class TrainLoader(Loader):
    """One rank's share of shuffled, augmented batches.

    A batch is a pure function of (seed, epoch, step) and of the views: neither the number of
    workers, nor what was drawn before, nor the state of the global generators changes it, and those
    are left as they were. Each step takes the next ``batch_size · world_size`` images of the
    epoch's order; a rank has its slice of them, so the images and views of a step are the same for
    any number of ranks, mixed or not. Images left over at the end of an epoch sit it out, unless
    ``drop_last`` is false: then they are one more step, shared over the ranks as evenly as
    possible; fewer of them than ranks sit it out.

    An image that cannot be read counts once, however many epochs meet it. A rank knows what it has
    met itself and what `add_bad_images` has told it: exchange them over the ranks now and then.

    Args:
        views: What is shown.
        batch_size: Images per step on this rank.
        seed: Decides the order.
        rank: Number of this process.
        world_size: Number of processes.
        drop_last: Whether images that fill no batch sit an epoch out.
        max_bad_fraction: Share of all training images that may be unreadable.
        on_bad_image: Called once for each, with a line to show.
        stored: What each teacher said of the views, by its number in the recipe from 0; None for
            one that runs.
        device: Where training is. Batches come on it where it makes the views, and else on the CPU.
        views_on: Who makes the views, as in `DataConfig`.
        **loading: Of `Loader`: workers and so on.

    Attributes:
        steps_per_epoch: Batches of each epoch, the same on every rank.

    Raises:
        DataError: If the images do not fill one step.
        RecipeError: If images are to be mixed in pairs and a batch may be odd, memory is to be
            pinned without a GPU, or the device is to make views that it cannot.
    """

    def __init__(
        self,
        views: TrainViews,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        max_bad_fraction: float = 0.01,
        on_bad_image: Callable[[str], None] | None = None,
        stored: Sequence[Cache | None] = (),
        device: torch.device | str = "cpu",
        views_on: ViewsOn = "auto",
        **loading: Any,
    ) -> None:
        self._num_images = views.num_slots
        self._images_per_step = batch_size * world_size
        self.steps_per_epoch, left = divmod(self._num_images, self._images_per_step)
        if not drop_last and left >= world_size:
            self.steps_per_epoch += 1
        if not self.steps_per_epoch:
            raise _too_few(len(views.reader), self._images_per_step, world_size, drop_last)
        _require_pairs(views, batch_size, drop_last)
        self._views = views
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        bad_images = _bad_images(views, max_bad_fraction, on_bad_image)
        part, finish = _divided(views, views_on, device)
        batches = TrainBatches(views, tuple(stored), part)
        super().__init__(batches, bad_images, finish=finish, **loading)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from, in values that JSON has."""
        return {"bad_images": {str(index): words for index, words in self.bad_images.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Know the images that could not be read before, without naming them again."""
        self.bad_images.update({int(key): words for key, words in state["bad_images"].items()})

    def is_even(self, step: int) -> bool:
        """Whether all ranks are sure to hold equally many images in a step of any epoch."""
        if self._world_size == 1:
            return True
        return self._views.policy != "drop" and self._count(step) % self._world_size == 0

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch. Leave one epoch before beginning the next.

        Args:
            epoch: From 0.
            skip: Steps to leave out at the beginning, at no cost; those after them are what they
                would have been.

        Raises:
            DataError: If an image cannot be read and the policy is to stop, no other can take its
                place, or more have failed than may.
            CacheError: If what is stored of a teacher cannot be read.
        """
        view = self._views.number(epoch)
        rng = np.random.default_rng((self._seed, Stream.ORDER, epoch))
        slots = self._views.shuffled(view, rng)
        positions = self._views.layout(view)[slots]
        keys = []
        for step in range(skip, self.steps_per_epoch):
            share = self._share(step)
            keys.append(BatchKey(view, positions[share].tolist(), slots[share].tolist()))
        return self._load(keys)

    def _count(self, step: int) -> int:
        """Images of a step, over all ranks."""
        return min(self._images_per_step, self._num_images - step * self._images_per_step)

    def _share(self, step: int) -> slice:
        """This rank's part of an epoch's order in a step."""
        count, start = self._count(step), step * self._images_per_step
        first, end = (count * r // self._world_size for r in (self._rank, self._rank + 1))
        return slice(start + first, start + end)


@final
class ReplayLoader(Loader):
    """Views of training images, as they are asked for: what they were or will be in training.

    Args:
        views: What is shown.
        max_bad_fraction: Share of all images that may be unreadable.
        on_bad_image: Called once for each, with a line to show.
        device: As of `TrainLoader`.
        views_on: As of `TrainLoader`.
        **loading: Of `Loader`: workers and so on.
    """

    def __init__(
        self,
        views: TrainViews,
        *,
        max_bad_fraction: float = 0.01,
        on_bad_image: Callable[[str], None] | None = None,
        device: torch.device | str = "cpu",
        views_on: ViewsOn = "auto",
        **loading: Any,
    ) -> None:
        self._views = views
        bad_images = _bad_images(views, max_bad_fraction, on_bad_image)
        part, finish = _divided(views, views_on, device)
        super().__init__(TrainBatches(views, (), part), bad_images, finish=finish, **loading)

    def batches(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[Batch]:
        """Yield one batch for each of (view, slots); where images are mixed, whole pairs of slots.

        Raises:
            DataError: As of `TrainLoader`.
        """
        keys = []
        for view, slots in wanted:
            positions = self._views.layout(view)[np.asarray(slots)]
            keys.append(BatchKey(view, positions.tolist(), slots))
        return self._load(keys)


@final
class EvalLoader(Loader):
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
        rank: Number of this process.
        world_size: Number of processes.
        bad_images: "stop", or images that cannot be read are left out.
        max_bad_fraction: Share of all these images that may be such.
        on_bad_image: Called once for each, with a line to show.
        known: What other loaders of these images found bad, by index; this one adds to it.
        **loading: Of `Loader`: workers and so on.

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
        rank: int = 0,
        world_size: int = 1,
        bad_images: BadImagePolicy = "replace",
        max_bad_fraction: float = 0.01,
        on_bad_image: Callable[[str], None] | None = None,
        known: dict[int, str] | None = None,
        **loading: Any,
    ) -> None:
        positions = range(rank, len(reader), world_size)
        self.num_samples = len(positions)
        starts = range(0, len(positions), batch_size)
        self._keys = [BatchKey(0, list(positions[start : start + batch_size])) for start in starts]
        bad = BadImages(
            len(reader),
            kind="images",
            max_fraction=max_bad_fraction,
            outcome="no score counts it",
            tell=on_bad_image,
            found=known,
        )
        view = eval_view(augment, image_size)
        super().__init__(EvalBatches(reader, view, num_classes, bad_images), bad, **loading)

    def __iter__(self) -> Iterator[Batch]:
        return self._load(self._keys)


def _divided(
    views: TrainViews, views_on: ViewsOn, device: torch.device | str
) -> tuple[Part, DeviceViews | None]:
    """What the loader's processes make of the views, and who does the rest."""
    device = torch.device(device)
    part = made_by_workers(views, views_on, device)
    return part, None if part == "views" else DeviceViews(views, part, device)


def _bad_images(
    views: TrainViews, max_fraction: float, tell: Callable[[str], None] | None
) -> BadImages:
    """Counts training images that cannot be read."""
    outcome = _OUTCOMES[views.policy]
    return BadImages(
        len(views.reader),
        kind="training images",
        max_fraction=max_fraction,
        outcome=outcome,
        tell=tell,
    )


def _too_few(
    num_images: int, images_per_step: int, world_size: int, drop_last: bool
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


def _require_pairs(views: TrainViews, batch_size: int, drop_last: bool) -> None:
    """Refuse to mix images in pairs where one may be left over."""
    if not views.paired:
        return
    if batch_size % 2:
        raise RecipeError(
            f"mixup and cutmix need an even number of images on each rank, got {batch_size}",
            "change train.batch_size, or set augment.mixup and augment.cutmix to 0",
        )
    given, cure = "data.drop_last is false", "leave data.drop_last true"
    if drop_last:
        if views.policy != "drop":
            return
        given, cure = "data.bad_images is 'drop'", "set data.bad_images = 'replace'"
    raise RecipeError(
        f"{given}, so that a batch may be of any size, and mixup and cutmix mix it in pairs",
        f"{cure}, or set augment.mixup and augment.cutmix to 0",
    )
