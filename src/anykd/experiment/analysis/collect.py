"""Run models over the same images once, and keep what they are compared by."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anykd.analysis import MinibatchCKA, effective_rank
from anykd.engine import autocast
from anykd.models import StagedModel
from anykd.models.probe import evaluating
from anykd.types import Batch, Features

from .images import ModelView

__all__ = ["CKA_SAMPLES", "LAYERS", "Collected", "Subject", "collect", "layers_of"]

LAYERS = ("stage 1", "stage 2", "stage 3", "stage 4", "pooled")
"""What is compared of every model."""

CKA_SAMPLES = 512
"""Images that features are compared on: they take more time than class scores."""
_LEAST = 4
"""Images of which HSIC can be estimated."""


@dataclass(frozen=True)
class Subject:
    """A model that is looked at.

    Attributes:
        model: It, for reading.
        see: Runs it.
        view: How it is shown images.
        knows_classes: Whether its class scores mean something.
    """

    model: StagedModel
    see: Callable[[Tensor], Features]
    view: ModelView
    knows_classes: bool = True


@dataclass(frozen=True)
class Collected:
    """What some models made of the same images.

    Attributes:
        indices: Of the images, among those that were shown.
        labels: Of the images; None where they have none.
        logits: Class scores of each model; None where they mean nothing.
        ranks: Effective rank of each layer of each model; stages are averaged over positions.
        cka: CKA of the first model's layers (rows) with those of each other model; None where there
            were too few images.
        cka_samples: Images that features were compared on.
    """

    indices: Int[Tensor, " images"]
    labels: Int[Tensor, " images"] | None
    logits: tuple[Float[Tensor, "images classes"] | None, ...]
    ranks: tuple[dict[str, float], ...]
    cka: tuple[Float[Tensor, "layers others"] | None, ...]
    cka_samples: int


def layers_of(features: Features) -> list[Tensor]:
    """The layers that `LAYERS` names."""
    return [*features.stages, features.pooled]


@torch.no_grad()
def collect(
    subjects: Sequence[Subject],
    batches: Iterable[list[Batch]],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Collected:
    """Run models over images; nothing of the models changes.

    Args:
        subjects: The models; the first is compared with each of the others.
        batches: The images of each batch, as each model sees them.
        device: Where the models are.
        dtype: Type for autocast, or None.
    """
    compared = [MinibatchCKA(len(LAYERS), len(LAYERS)) for _ in subjects[1:]]
    kept = [_Kept() for _ in subjects]
    indices: list[Tensor] = []
    labels: list[Tensor] = []
    with ExitStack() as stack:
        for subject in subjects:
            stack.enter_context(evaluating(subject.model))
        seen = 0
        for views in batches:
            given = views[0]
            assert given.indices is not None
            indices.append(given.indices)
            if given.labels is not None:
                labels.append(given.labels.argmax(dim=1))
            layers: list[list[Tensor]] = []
            for subject, batch, keep in zip(subjects, views, kept, strict=True):
                with autocast(device, dtype):
                    features = subject.see(batch.images.to(device))
                if subject.knows_classes:
                    keep.logits.append(features.logits.float().cpu())
                layers.append(layers_of(features))
                if seen < CKA_SAMPLES:
                    keep.add(layers[-1])
            if seen < CKA_SAMPLES and len(given) >= _LEAST:
                for other, cka in zip(layers[1:], compared, strict=True):
                    cka.update(layers[0], other)
            seen += len(given)
    return Collected(
        indices=torch.cat(indices),
        labels=torch.cat(labels) if labels else None,
        logits=tuple(torch.cat(one.logits) if one.logits else None for one in kept),
        ranks=tuple(one.ranks() for one in kept),
        cka=tuple(one.compute() if one.num_samples else None for one in compared),
        cka_samples=compared[0].num_samples if compared else 0,
    )


class _Kept:
    """Class scores of a model, and the mean over positions of each of its layers."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.vectors: list[list[Tensor]] = [[] for _ in LAYERS]

    def add(self, layers: Sequence[Tensor]) -> None:
        for vectors, layer in zip(self.vectors, layers, strict=True):
            mean = layer.flatten(start_dim=2).float().mean(dim=2) if layer.ndim > 2 else layer
            vectors.append(mean.float().cpu())

    def ranks(self) -> dict[str, float]:
        return {
            name: effective_rank(torch.cat(vectors))
            for name, vectors in zip(LAYERS, self.vectors, strict=True)
        }
