"""From the key of a batch to its tensors: what runs in the loader's worker processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from anykd.errors import AnykdError

from .cache import Cache
from .drawn import Drawn
from .faults import BadImagePolicy, read_samples
from .reader import Reader
from .train_views import Part, TrainViews
from .views import View, in_unit_range

__all__ = [
    "BatchKey",
    "EvalBatches",
    "Images",
    "Indices",
    "Labels",
    "Loaded",
    "TrainBatches",
]

Images = Float[Tensor, "batch 3 height width"]
Labels = Float[Tensor, "batch classes"]
Indices = Int[Tensor, " batch"]
Known = tuple[Float[Tensor, "batch classes"] | None, Float[Tensor, "batch width"] | None]
"""Class scores and pooled vectors that a teacher gave images before."""
Loaded = tuple[
    tuple[Images | Drawn, Labels | None, Indices, tuple[Known, ...]] | None, dict[int, str]
]
"""A batch, or None where nothing is left of it, and what was wrong with the images that could not
be read, by index. It crosses between processes, and is pinned on the way: torch finds the tensors
of tuples, and of classes of ours those that know how. What is drawn becomes images and labels
where it arrives."""


@dataclass(frozen=True)
class BatchKey:
    """What a batch depends on, beside the settings of its loader.

    Attributes:
        view: Number of the view, from 0.
        positions: The images, as positions in the reader.
        slots: The same images, as places in the view's own order; none where it has no order.
    """

    view: int
    positions: Sequence[int]
    slots: Sequence[int] = ()


@final
@dataclass(frozen=True)
class TrainBatches(Dataset):
    """Augmented batches by key.

    Whole batches cross over as floats: four times the bytes of 8-bit images, but erasing and mixing
    need floats, and the training process has nothing left to do but copy the pinned batch to its
    device.

    Attributes:
        views: What is shown.
        stored: What each teacher said of it; those of no teacher where all of them run.
        part: How much of the views is made here; less than "views" is for the device to finish.
    """

    views: TrainViews
    stored: tuple[Cache | None, ...] = ()
    part: Part = "views"

    @property
    def reader(self) -> Reader:
        """Where the images come from."""
        return self.views.reader

    def __getitem__(self, key: BatchKey) -> Loaded | AnykdError:
        """Make a batch. An error comes back as a value: torch would wrap what is raised."""
        try:
            if self.part != "views":
                left, places, bad = self.views.draw(
                    key.view, key.positions, crops=self.part == "crops"
                )
                return (left, None, left.indices, self._known(key, places)), bad
            shown = self.views.show(key.view, key.positions)
            known = self._known(key, shown.places)
        except AnykdError as error:
            return error
        return (shown.images, shown.labels, shown.indices, known), shown.bad

    def _known(self, key: BatchKey, places: Sequence[int]) -> tuple[Known, ...]:
        slots = [key.slots[place] for place in places] if self.stored else []
        return tuple(_read(cache, key.view, slots) for cache in self.stored)


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

    def __getitem__(self, key: BatchKey) -> Loaded | AnykdError:
        """Make a batch. An error comes back as a value: torch would wrap what is raised."""
        try:
            samples, bad = read_samples(self.reader, key.positions, policy=self.policy)
        except AnykdError as error:
            return error
        if not samples:
            return None, bad
        images = in_unit_range([self.view(sample.image) for sample in samples])
        labels = None
        if self.reader.labels is not None:
            labels = F.one_hot(torch.tensor([s.label for s in samples]), self.num_classes).float()
        return (images, labels, torch.tensor([sample.index for sample in samples]), ()), bad


def _read(cache: Cache | None, view: int, slots: Sequence[int]) -> Known:
    if cache is None:
        return None, None
    stored = cache.read(view, slots)
    return stored.logits, stored.pooled
