"""What training shows of a data set: each view a pure function of (seed, number, image)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .augment import AugmentConfig
from .batched import distributions, finish
from .choices import Chooser, Chosen, Crop, Mixing, Patch
from .drawn import Drawn, drawn, own_and_other
from .faults import BadImagePolicy, StandIns, read_samples
from .reader import Reader, Sample
from .rendering import crop_and_flip, render
from .seeded import Stream, generators_kept, seed_generators
from .views import height_width

__all__ = ["Part", "Shown", "TrainViews"]

Part = Literal["choices", "crops", "views"]
"""How much of views is made image by image: nothing at all, for which no image is read; crops and
flips; or all."""


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

    A view is what is *chosen* for it (`Chooser`); its pixels are made of that by whoever is best
    placed to, and are the same to one level of 255: see `draw`.

    Where two images are mixed, timm's `Mixup` draws how; over many draws pairs, kinds, shares and
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
        op_names: timm's names of all changes of colour and shape that may be chosen.
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
        self._size = height_width(image_size)
        self._chooser = Chooser(augment, self._size)
        self.paired = augment.mixes
        self.op_names = self._chooser.op_names
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

    def show(self, number: int, positions: Sequence[int], *, exact: bool = False) -> Shown:
        """Make a view of some images.

        Args:
            number: Of the view, from 0.
            positions: Which images; where they are mixed, partners are neighbours as in `layout`.
            exact: Whether to have Pillow's pixels to the bit. Else they may be off by one level of
                255, by processor and version of torch, and are there sooner.

        Raises:
            DataError: If an image cannot be read, and nothing may take its place.
        """
        samples, places, bad = self._read(number, positions)
        chosen = self._chosen(number, positions, samples)
        interpolation = self.augment.interpolation
        images = render(samples, chosen, self._size, interpolation=interpolation, exact=exact)
        classes = torch.tensor([sample.label or 0 for sample in samples])
        labels = self._labels(classes, own_and_other([mixing.share for mixing in chosen.mixings]))
        indices = torch.tensor([sample.index for sample in samples])
        return Shown(images, labels, indices, places, bad)

    def draw(
        self, number: int, positions: Sequence[int], *, crops: bool
    ) -> tuple[Drawn, Sequence[int], dict[int, str]]:
        """Choose a view of some images, and leave it to `finish` to make it.

        Args:
            number: Of the view, from 0.
            positions: Which images, as in `show`.
            crops: Whether to read the images, and crop and flip them. Else they must be of one
                size, and lie where the rest is done.

        Returns:
            What is left to do; places and bad as in `Shown`.

        Raises:
            DataError: As of `show`.
        """
        pixels, places, bad = None, range(len(positions)), {}
        if crops:
            samples, places, bad = self._read(number, positions)
        else:
            samples = self._unread(positions)
        chosen = self._chosen(number, positions, samples)
        if crops:
            interpolation = self.augment.interpolation
            pixels = torch.stack(
                [
                    crop_and_flip(sample, crop, self._size, interpolation=interpolation)
                    for sample, crop in zip(samples, chosen.crops, strict=True)
                ]
            )
        classes = [sample.label or 0 for sample in samples]
        indices = [sample.index for sample in samples]
        return drawn(chosen, classes, indices, pixels), places, bad

    def finish(
        self, left: Drawn, source: UInt8[Tensor, "count in_height in_width 3"] | None = None
    ) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, "batch classes"] | None]:
        """Make views of what `draw` has left to do, on the device on which it lies.

        Args:
            left: Of these views.
            source: Pixels of all images, on the same device; needed where none are cropped yet.

        Returns:
            Images and labels as in `Shown`.
        """
        interpolation = self.augment.interpolation
        images = finish(left, size=self._size, interpolation=interpolation, source=source)
        return images, self._labels(left.classes, left.shares)

    def _labels(
        self, classes: Int[Tensor, " batch"], shares: Float[Tensor, "batch 2"] | None
    ) -> Float[Tensor, "batch classes"] | None:
        if self.reader.labels is None:
            return None
        width, smoothing = self._num_classes, self._smoothing
        return distributions(classes, shares, num_classes=width, smoothing=smoothing)

    def _read(
        self, number: int, positions: Sequence[int]
    ) -> tuple[list[Sample], Sequence[int], dict[int, str]]:
        """Read images, or others in their place; places and bad as in `Shown`."""
        stand_in = partial(self._stand_ins, number)
        samples, bad = read_samples(self.reader, positions, policy=self.policy, stand_in=stand_in)
        places: Sequence[int] = range(len(positions))
        if self.policy == "drop" and bad:
            # Where nothing is left, one image stands in for the first.
            places = [k for k, position in enumerate(positions) if position not in bad] or [0]
        return samples, places, bad

    def _unread(self, positions: Sequence[int]) -> list[Sample]:
        """Samples without pixels, of which all have one size."""
        labels = self.reader.labels
        return [
            Sample(self._blank, None if labels is None else labels[position], position)
            for position in positions
        ]

    @cached_property
    def _blank(self) -> Tensor:
        return torch.empty_like(self.reader[0].pixels, device="meta")

    def _chosen(self, number: int, positions: Sequence[int], samples: Sequence[Sample]) -> Chosen:
        with generators_kept():  # once: keeping them takes longer than seeding them
            crops = [self._crop(number, sample) for sample in samples]
            patches = [self._patch(number, sample) for sample in samples if self._chooser.erases]
            firsts = range(0, len(positions) if self.paired else 0, 2)
            mixings = [self._mixing(number, min(positions[k : k + 2])) for k in firsts]
        return Chosen(crops, patches, mixings)

    def _crop(self, number: int, sample: Sample) -> Crop:
        key = self.seed, Stream.VIEW, number, sample.index
        seed_generators(*key, numpy=self._chooser.draws_from_numpy)
        return self._chooser.crop(sample.content)

    def _patch(self, number: int, sample: Sample) -> Patch | None:
        seed_generators(self.seed, Stream.ERASE, number, sample.index, numpy=False)
        return self._chooser.patch()

    def _mixing(self, number: int, index: int) -> Mixing:
        seed_generators(self.seed, Stream.MIX, number, index)
        return self._chooser.mixing()
