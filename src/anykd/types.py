"""The words that the parts share: a batch, what a model saw, what a method made of it.

Axis names used in shape annotations: batch, classes, chan, height, width, tokens.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Batch", "Features", "Stage", "StepOutput", "Terms"]

Stage = Literal[1, 2, 3, 4]
"""A stage of a model as people count: 1 (early) to 4 (late)."""

Terms = dict[str, Float[Tensor, ""]]
"""Weighted terms of a loss, by name."""


@dataclass(frozen=True)
class Batch:
    """Some images with their labels.

    Attributes:
        images: RGB, nominally in [0, 1]; each model normalises for itself.
        labels: One class distribution per image (one-hot, smoothed or mixed); rows sum to 1.
            None where the data has no labels.
        indices: Stable position of each image in its data set. None where nobody asked.
    """

    images: Float[Tensor, "batch 3 height width"]
    labels: Float[Tensor, "batch classes"] | None = None
    indices: Int[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def split(self, parts: int) -> list["Batch"]:
        """Divide the batch into parts of equal size, or as nearly so as can be.

        Args:
            parts: How many; at most as many as there are images.
        """
        images = self.images.tensor_split(parts)
        nothing = [None] * parts
        labels = nothing if self.labels is None else self.labels.tensor_split(parts)
        indices = nothing if self.indices is None else self.indices.tensor_split(parts)
        return [Batch(*part) for part in zip(images, labels, indices, strict=True)]

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
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        indices = None if self.indices is None else self.indices.to(device, non_blocking=True)
        return Batch(images, labels, indices)


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
