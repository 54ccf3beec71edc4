"""From the key of a batch to its tensors: what runs in the loader's worker processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import Dataset

from anykd.errors import DataError, RecipeError

from .augment import AugmentConfig
from .faults import BadImagePolicy, StandIns, read_samples
from .reader import Reader
from .seeded import Stream, seeded
from .views import View, erase_

__all__ = [
    "BatchKey",
    "EvalBatches",
    "Loaded",
    "Mixing",
    "SmoothLabels",
    "TrainBatches",
    "create_mixing",
]

Images = Float[Tensor, "batch 3 height width"]
Labels = Float[Tensor, "batch classes"]
Indices = Int[Tensor, " batch"]
Mixing = Callable[[Images, Indices], tuple[Images, Labels]]
Loaded = tuple[tuple[Images, Labels | None, Indices] | None, dict[int, str]]
"""A batch, or None where nothing is left of it, and what was wrong with the images that could not
be read, by index. It crosses between processes, and no class of ours is pinned."""


@dataclass(frozen=True)
class BatchKey:
    """What a batch depends on, beside the settings of its loader.

    Attributes:
        epoch: From 0.
        step: Number of the batch in its epoch, from 0.
        positions: The images, as positions in the reader.
    """

    epoch: int
    step: int
    positions: Sequence[int]


@final
@dataclass(frozen=True)
class TrainBatches(Dataset):
    """Augmented batches by key.

    A batch is made whole in one process and crosses over as floats: four times the bytes of
    8-bit images, but erasing and mixing need floats, and the training process has nothing left to
    do but copy the pinned batch to its device.

    Attributes:
        reader: The images.
        view: What is done to one image.
        erasing: Probability of random erasing.
        mixing: What is done to the batch; it turns class indices into distributions.
        seed: Decides every view.
        rank: Number of the process that trains on the batches.
        policy: What becomes of images that cannot be read.
        stand_ins: What replaces them.
    """

    reader: Reader
    view: View
    erasing: float
    mixing: Mixing
    seed: int
    rank: int
    policy: BadImagePolicy
    stand_ins: StandIns

    def __getitem__(self, key: BatchKey) -> Loaded | DataError:
        """Make a batch. An error comes back as a value: torch would wrap what is raised."""
        stand_in = partial(self.stand_ins, key.epoch)
        try:
            samples, bad = read_samples(
                self.reader, key.positions, policy=self.policy, stand_in=stand_in
            )
        except DataError as error:
            return error
        views = []
        for sample in samples:
            with seeded(self.seed, Stream.VIEW, key.epoch, sample.index):
                views.append(self.view(sample.image))
        images = _in_unit_range(views)
        if self.erasing:
            for sample, image in zip(samples, images, strict=True):
                with seeded(self.seed, Stream.ERASE, key.epoch, sample.index):
                    erase_(image, self.erasing)
        with seeded(self.seed, Stream.MIX, key.epoch, key.step, self.rank):
            images, labels = self.mixing(images, torch.tensor([s.label or 0 for s in samples]))
        if self.reader.labels is None:
            labels = None
        return (images, labels, torch.tensor([sample.index for sample in samples])), bad


@final
@dataclass(frozen=True)
class EvalBatches(Dataset):
    """Plain crops with one-hot labels, in batches by key.

    Attributes:
        reader: The images.
        view: What is done to one image.
        num_classes: Width of the labels.
        policy: "stop", or images that cannot be read are left out.
    """

    reader: Reader
    view: View
    num_classes: int
    policy: BadImagePolicy

    def __getitem__(self, key: BatchKey) -> Loaded | DataError:
        """Make a batch. An error comes back as a value: torch would wrap what is raised."""
        try:
            samples, bad = read_samples(self.reader, key.positions, policy=self.policy)
        except DataError as error:
            return error
        if not samples:
            return None, bad
        images = _in_unit_range([self.view(sample.image) for sample in samples])
        labels = None
        if self.reader.labels is not None:
            labels = F.one_hot(torch.tensor([s.label for s in samples]), self.num_classes).float()
        return (images, labels, torch.tensor([sample.index for sample in samples])), bad


def create_mixing(
    augment: AugmentConfig, *, batch_size: int, num_classes: int, label_smoothing: float
) -> Mixing:
    """Build what turns a batch's class indices into distributions, and may mix its images.

    Mixup and cutmix are timm's, one of them with one share per batch, as the published pipelines
    have them: image i is mixed with image batch_size - 1 - i.

    Args:
        augment: Settings, resolved or not.
        batch_size: Images of every batch.
        num_classes: Width of the labels.
        label_smoothing: s in [0, 1): the label of a class is s/C, plus 1 - s for the class itself.

    Raises:
        RecipeError: If images are to be mixed in pairs and their number is odd.
    """
    augment = augment.resolved()
    mixup, cutmix = augment.mixup or 0.0, augment.cutmix or 0.0
    if not mixup and not cutmix:
        return SmoothLabels(num_classes, label_smoothing)
    if batch_size % 2:
        raise RecipeError(
            f"mixup and cutmix need an even number of images on each rank, got {batch_size}",
            "change train.batch_size, or set augment.mixup and augment.cutmix to 0",
        )
    return Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )


@final
@dataclass(frozen=True)
class SmoothLabels:
    """Leaves the images as they are, and smooths the labels.

    Attributes:
        num_classes: C, the width of the labels.
        smoothing: s in [0, 1): a label is s/C, plus 1 - s for its class.
    """

    num_classes: int
    smoothing: float

    def __call__(self, images: Images, labels: Indices) -> tuple[Images, Labels]:
        """Turn class indices into distributions."""
        one_hot = F.one_hot(labels, self.num_classes).float()
        return images, one_hot * (1 - self.smoothing) + self.smoothing / self.num_classes


def _in_unit_range(views: Sequence[Tensor]) -> Images:
    """Stack 8-bit views to one float tensor in [0, 1]."""
    return torch.stack(list(views)).float().div_(255)
