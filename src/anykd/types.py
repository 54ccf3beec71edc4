"""The words that the parts share: a batch, what a model saw, what a method made of it.

Axis names used in shape annotations: batch, classes, chan, height, width, tokens.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "EVERYTHING",
    "Batch",
    "FeaturePart",
    "Features",
    "Stage",
    "StepOutput",
    "Stored",
    "Terms",
]

Stage = Literal[1, 2, 3, 4]
"""A stage of a model as people count: 1 (early) to 4 (late)."""

Terms = dict[str, Float[Tensor, ""]]
"""Weighted terms of a loss, by name."""

FeaturePart = Literal["stages", "pooled", "logits"]
"""A part of what a model saw: its stage maps with their prefix tokens, its vector, its scores."""

EVERYTHING: frozenset[FeaturePart] = frozenset(("stages", "pooled", "logits"))
"""All that a model saw."""


@dataclass(frozen=True)
class Stored:
    """What one teacher is known to say of the images of a batch, computed before.

    Attributes:
        logits: Its class scores, up to a constant for each image. None where they are not stored.
        pooled: The vector that its classifier reads. None where it is not stored.
    """

    logits: Float[Tensor, "batch classes"] | None = None
    pooled: Float[Tensor, "batch width"] | None = None


@dataclass(frozen=True)
class Batch:
    """Some images with their labels.

    Attributes:
        images: RGB, nominally in [0, 1]; each model normalises for itself.
        labels: One class distribution per image (one-hot, smoothed or mixed); rows sum to 1.
            None where the data has no labels.
        indices: Stable position of each image in its data set. None where nobody asked.
        stored: What teachers are known to say of exactly these images, each at the number of its
            own slot; None, or nothing at all, where nothing is known.
    """

    images: Float[Tensor, "batch 3 height width"]
    labels: Float[Tensor, "batch classes"] | None = None
    indices: Int[Tensor, " batch"] | None = None
    stored: tuple[Stored | None, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def joined(cls, batches: "Sequence[Batch]") -> "Batch":
        """Put batches behind one another; what one of them has, all have."""
        stored = zip(*(batch.stored for batch in batches), strict=True)
        return cls(
            torch.cat([batch.images for batch in batches]),
            _joined([batch.labels for batch in batches]),
            _joined([batch.indices for batch in batches]),
            tuple(_joined_stored(known) for known in stored),
        )

    def split(self, parts: int) -> list["Batch"]:
        """Divide the batch into parts of equal size, or as nearly so as can be.

        Args:
            parts: How many; at most as many as there are images.
        """
        # As torch's tensor_split has it: the first parts are larger by one.
        size, more = divmod(len(self), parts)
        starts = [size * part + min(part, more) for part in range(parts + 1)]
        return [self.rows(slice(*ends)) for ends in itertools.pairwise(starts)]

    def rows(self, chosen: Int[Tensor, " chosen"] | slice) -> "Batch":
        """Take some of the images, with all that is known of them."""
        return self._each(lambda tensor: tensor[chosen])

    def to(
        self, device: torch.device | str, *, memory_format: torch.memory_format | None = None
    ) -> "Batch":
        """Copy the batch to a device.

        Args:
            device: Where to.
            memory_format: Layout of the images there; None keeps the present one.
        """
        layout = memory_format or torch.preserve_format
        images = self.images.to(device, non_blocking=True, memory_format=layout)
        rest = replace(self, images=images)
        return rest._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Do the same to every tensor."""

        def to(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        stored = tuple(
            None if one is None else Stored(to(one.logits), to(one.pooled)) for one in self.stored
        )
        return Batch(change(self.images), to(self.labels), to(self.indices), stored)


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None


def _joined_stored(known: Sequence[Stored | None]) -> Stored | None:
    there = [one for one in known if one is not None]
    if not there:
        return None
    return Stored(_joined([one.logits for one in there]), _joined([one.pooled for one in there]))


@dataclass(frozen=True)
class Features:
    """What a staged model saw in a batch.

    Attributes:
        stages: Four feature maps (batch, chan, h, w), early to late, before any final norm. The
            tokens of columnar models are folded to maps.
        prefixes: Per stage the class, distillation and register tokens (batch, tokens, width) that
            stand beside the map, or None. `Features` of a tail hold the last stage only.
        pooled: The vector that the classifier reads.
        logits: Unnormalised class scores.
    """

    stages: tuple[Float[Tensor, "..."], ...]
    prefixes: tuple[Float[Tensor, "..."] | None, ...]
    pooled: Float[Tensor, "batch width"]
    logits: Float[Tensor, "batch classes"]

    def map(self, change: Callable[[Tensor], Tensor], *, stages: bool = True) -> "Features":
        """Do the same to every tensor.

        Args:
            change: What to do.
            stages: Whether to keep the stages and their prefix tokens; without, none are left.
        """
        kept = slice(None if stages else 0)
        return Features(
            tuple(change(stage) for stage in self.stages[kept]),
            tuple(None if one is None else change(one) for one in self.prefixes[kept]),
            change(self.pooled),
            change(self.logits),
        )


@dataclass(frozen=True)
class StepOutput:
    """What a method made of a batch.

    Attributes:
        logits: The student's class scores.
        terms: The weighted terms of the loss, by name. Their sum is trained.
    """

    logits: Float[Tensor, "batch classes"]
    terms: Terms = field(default_factory=dict)

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()
