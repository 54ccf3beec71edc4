"""What training shows of a data set: each view a pure function of (seed, number, image)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.data.mixup import Mixup
from torch import Tensor

from .augment import AugmentConfig
from .faults import BadImagePolicy, StandIns, read_samples
from .reader import Reader, Sample
from .seeded import Stream, generators_kept, seed_generators
from .views import View, erase_, train_view

__all__ = ["Shown", "TrainViews", "in_unit_range"]


@dataclass(frozen=True)
class Shown:
    """Some images as training shows them.

    Attributes:
        images: RGB, nominally in [0, 1].
        labels: Class distributions, smoothed and mixed as the images are; None without labels.
        indices: Position of each image in the reader; that of the stand-in where it has one.
        places: Which of the positions that were asked for these are.
        bad: What was wrong with each image that could not be read, by position.
    """

    images: Float[Tensor, "batch 3 height width"]
    labels: Float[Tensor, "batch classes"] | None
    indices: Int[Tensor, " batch"]
    places: Sequence[int]
    bad: dict[int, str] = field(default_factory=dict)


@final
class TrainViews:
    """The views of training images.

    View ``number`` of the image at ``position`` is a pure function of (seed, number, position): it
    can be made again by any process, on any rank, in any order, and these three numbers describe
    it. That holds for mixup and cutmix too. In each view the images are paired anew, and a pair is
    mixed with a share, and a box, of its own: so an image's partner is as much a part of its view
    as its crop, and must be shown beside it.

    Where two images are mixed, timm's `Mixup` mixes them; over many draws pairs, kinds, shares and
    boxes are distributed as in its mode "pair". Its mode "batch", which the published pipelines
    use, differs in one thing: there all pairs of a batch have one share.

    Args:
        reader: The images.
        num_classes: Width of the labels.
        image_size: Height and width of the views in pixels, or one number for both.
        augment: How images are varied.
        label_smoothing: s in [0, 1): a label is s/C, plus 1 - s for its class.
        seed: Decides every view, unless ``augment.view_seed`` is given.
        bad_images: What becomes of images that cannot be read, as in `DataConfig`.

    Attributes:
        count: Different views of each image; None where every epoch brings new ones.
        paired: Whether images are mixed in pairs.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        num_classes: int,
        image_size: int | tuple[int, int],
        augment: AugmentConfig,
        label_smoothing: float,
        seed: int,
        bad_images: BadImagePolicy = "replace",
    ) -> None:
        self.reader = reader
        self.augment = augment = augment.resolved()
        self.image_size = image_size
        self.seed = seed if augment.view_seed is None else augment.view_seed
        self.count = augment.num_views if augment.varies else 1
        self.policy: BadImagePolicy = bad_images
        self._num_classes = num_classes
        self._smoothing = label_smoothing
        self._view: View = train_view(augment, image_size)
        self._erasing = augment.erasing or 0.0
        self._mix = _mixup(augment, max(num_classes, 1), label_smoothing)
        self.paired = self._mix is not None
        self._stand_ins = StandIns(reader, self.seed)
        self._layout: tuple[int, np.ndarray] | None = None

    @property
    def num_slots(self) -> int:
        """Images of one view: all, or all but one where an odd number of them is mixed in pairs."""
        return len(self.reader) - (len(self.reader) % 2 if self.paired else 0)

    def with_stand_ins(self) -> "TrainViews":
        """The same views where every slot has an image: instead of dropping one, replace it."""
        views = copy.copy(self)
        if views.policy == "drop":
            views.policy = "replace"
        return views

    def number(self, epoch: int) -> int:
        """The view that an epoch shows, counted from 0 as epochs are."""
        return epoch if self.count is None else epoch % self.count

    def layout(self, number: int) -> Int[np.ndarray, " slots"]:
        """Positions of the images of a view in its own order, in which partners are neighbours.

        A place in this order is a *slot*. Without mixing it is the position itself.
        """
        if self._layout is None or self._layout[0] != number:
            order = np.arange(len(self.reader))
            if self.paired:
                rng = np.random.default_rng((self.seed, Stream.PAIR, number))
                order = rng.permutation(len(self.reader))[: self.num_slots]
            self._layout = number, order
        return self._layout[1]

    def shuffled(self, number: int, rng: np.random.Generator) -> Int[np.ndarray, " slots"]:
        """All slots of a view in random order; partners stay neighbours."""
        if not self.paired:
            return rng.permutation(self.num_slots)
        firsts = 2 * rng.permutation(self.num_slots // 2)
        return np.stack([firsts, firsts + 1], axis=1).ravel()

    def show(self, number: int, positions: Sequence[int]) -> Shown:
        """Make a view of some images.

        Args:
            number: Of the view, from 0.
            positions: Which images; where they are mixed, partners are neighbours as in `layout`.

        Raises:
            DataError: If an image cannot be read, and nothing may take its place.
        """
        stand_in = partial(self._stand_ins, number)
        samples, bad = read_samples(self.reader, positions, policy=self.policy, stand_in=stand_in)
        classes = torch.tensor([sample.label or 0 for sample in samples])
        with generators_kept():  # once: keeping them takes longer than seeding them
            images = in_unit_range([self._crop(number, sample) for sample in samples])
            self._erase(number, samples, images)
            labels = self._mixed(number, positions, images, classes)
        if self.reader.labels is None:
            labels = None
        indices = torch.tensor([sample.index for sample in samples])
        places: Sequence[int] = range(len(positions))
        if self.policy == "drop" and bad:
            # Where nothing is left, one image stands in for the first.
            places = [k for k, position in enumerate(positions) if position not in bad] or [0]
        return Shown(images, labels, indices, places, bad)

    def _crop(self, number: int, sample: Sample) -> Tensor:
        seed_generators(self.seed, Stream.VIEW, number, sample.index)
        return self._view(sample.image)

    def _erase(self, number: int, samples: Sequence[Sample], images: Tensor) -> None:
        if self._erasing:
            for sample, image in zip(samples, images, strict=True):
                seed_generators(self.seed, Stream.ERASE, number, sample.index)
                erase_(image, self._erasing)

    def _mixed(
        self, number: int, positions: Sequence[int], images: Tensor, classes: Tensor
    ) -> Float[Tensor, "batch classes"]:
        """Mix images in place, and turn their class indices into distributions."""
        if self._mix is None:
            width = self._num_classes
            one_hot = F.one_hot(classes, max(width, 1)).float()
            return one_hot * (1 - self._smoothing) + self._smoothing / max(width, 1)
        labels = []
        for first in range(0, len(positions), 2):
            pair = slice(first, first + 2)
            seed_generators(self.seed, Stream.MIX, number, min(positions[pair]))
            labels.append(self._mix(images[pair], classes[pair])[1])
        return torch.cat(labels)


def _mixup(
    augment: AugmentConfig, num_classes: int, label_smoothing: float
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What mixes two images and their labels; None where nothing is mixed."""
    if not augment.mixes:
        return None
    return Mixup(
        mixup_alpha=augment.mixup or 0.0,
        cutmix_alpha=augment.cutmix or 0.0,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )


def in_unit_range(views: Sequence[Tensor]) -> Float[Tensor, "batch 3 height width"]:
    """Stack 8-bit views to one float tensor in [0, 1]."""
    return torch.stack(list(views)).float().div_(255)
