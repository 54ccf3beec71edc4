"""The words that the parts share: a batch, what a model saw, what a method made of it.

Axis names used in shape annotations: batch, classes, chan, height, width, tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Batch", "FeaturePart", "Features", "Stage", "StepOutput", "Stored", "Terms"]

Stage = Literal[1, 2, 3, 4]
"""A stage of a model as people count: 1 (early) to 4 (late)."""

Terms = dict[str, Float[Tensor, ""]]
"""Weighted terms of a loss, by name."""

FeaturePart = Literal["stages", "pooled", "logits"]
"""A part of what a model saw: its stage maps with their prefix tokens, its vector, its scores."""


@dataclass(frozen=True)
class Stored:
    """What one teacher is known to say of the images of a batch, computed before.

    Attributes:
        logits: Its class scores, up to a constant for each image. None where they are not stored.
        pooled: The vector that its classifier reads. None where it is not stored.
    """

    logits: Float[Tensor, "batch classes"] | None = None
    pooled: Float[Tensor, "batch width"] | None = None

    def split(self, parts: int) -> list["Stored"]:
        """Divide it as `Batch.split` divides the images."""
        return [
            Stored(logits, pooled)
            for logits, pooled in zip(
                _split(self.logits, parts), _split(self.pooled, parts), strict=True
            )
        ]

    def to(self, device: torch.device | str) -> "Stored":
        """Copy it to a device."""
        return Stored(_to(self.logits, device), _to(self.pooled, device))


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

    def split(self, parts: int) -> list["Batch"]:
        """Divide the batch into parts of equal size, or as nearly so as can be.

        Args:
            parts: How many; at most as many as there are images.
        """
        images = self.images.tensor_split(parts)
        labels, indices = _split(self.labels, parts), _split(self.indices, parts)
        by_slot = [[None] * parts if one is None else one.split(parts) for one in self.stored]
        stored = zip(*by_slot, strict=True) if by_slot else [()] * parts
        return [Batch(*part) for part in zip(images, labels, indices, stored, strict=True)]

    def to(
        self, device: torch.device | str, *, memory_format: torch.memory_format | None = None
    ) -> "Batch":
        """Copy the batch to a device.

        Args:
            device: Where to.
            memory_format: Layout of the images there; None keeps the present one.
        """
        images = self.images.to(
            device, non_blocking=True, memory_format=memory_format or torch.preserve_format
        )
        stored = tuple(None if one is None else one.to(device) for one in self.stored)
        return Batch(images, _to(self.labels, device), _to(self.indices, device), stored)


def _split(tensor: Tensor | None, parts: int) -> Sequence[Tensor | None]:
    return [None] * parts if tensor is None else tensor.tensor_split(parts)


def _to(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


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
