"""Loaders of small images, and what tests ask of their batches."""

from typing import Any

import torch

from anykd.data import AugmentConfig, EvalLoader, Reader, TrainLoader, TrainViews
from anykd.data.bundled import SyntheticReader
from anykd.types import Batch

__all__ = [
    "READER",
    "eval_loader",
    "indices",
    "parts",
    "same",
    "train_loader",
    "train_views",
    "views",
]

READER = SyntheticReader(num_classes=4, per_class=6, split=0)  # 24 images


def train_views(reader: Reader = READER, **options) -> TrainViews:
    defaults = {
        "num_classes": 4,
        "image_size": 16,
        "augment": AugmentConfig(),
        "label_smoothing": 0.0,
        "seed": 0,
    }
    return TrainViews(reader, **(defaults | options))


def train_loader(reader: Reader = READER, *, seed: int = 0, **options) -> TrainLoader:
    names = ("num_classes", "image_size", "augment", "label_smoothing", "bad_images")
    shown = {name: options.pop(name) for name in names if name in options}
    defaults: dict[str, Any] = {"batch_size": 4, "workers": 0}
    return TrainLoader(train_views(reader, seed=seed, **shown), seed=seed, **(defaults | options))


def eval_loader(reader: Reader = READER, **options) -> EvalLoader:
    defaults = {
        "num_classes": 4,
        "image_size": 16,
        "batch_size": 4,
        "augment": AugmentConfig(),
        "workers": 0,
    }
    return EvalLoader(reader, **(defaults | options))


def parts(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert batch.labels is not None
    assert batch.indices is not None
    return batch.images, batch.labels, batch.indices


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x, y)
        for a, b in zip(first, second, strict=True)
        for x, y in zip(parts(a), parts(b), strict=True)
    )


def indices(batches: list[Batch]) -> list[int]:
    return torch.cat([parts(batch)[2] for batch in batches]).tolist()


def views(batches: list[Batch]) -> dict[int, torch.Tensor]:
    """The view of each image, by its index."""
    return {
        int(index): image
        for batch in batches
        for image, index in zip(batch.images, parts(batch)[2], strict=True)
    }
