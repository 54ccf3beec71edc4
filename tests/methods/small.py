"""Small models of every family: real timm architectures with small numbers."""

import copy
import functools
import zlib
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import Tensor

from anykd.methods import METHODS, Method, build_method
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.models.stored import StoredTeacher
from anykd.types import Batch, FeaturePart, Stored
from tests.models.moved import move_weights

NUM_CLASSES = 5
SIZE = 32
NUM_SAMPLES = 64

# What a method cannot know by itself or would be slow with, for every config that has the field.
SMALL_NUMBERS: dict[str, Any] = {"num_samples": NUM_SAMPLES, "num_negatives": 32}

FAMILIES = {
    "cnn": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24)}),
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 28, "depth": 4, "num_heads": 2}),
    "swin": (
        "swin_pico_patch4_window7_224",
        {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    ),
    # As wide as the CNN, so that no head is needed between the two.
    "wide": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3},
    ),
    "distilled": (
        "deit_tiny_distilled_patch16_224",
        {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    ),
}

PAIRS = [
    ("cnn", "vit"),
    ("vit", "cnn"),
    ("mlp", "cnn"),
    ("cnn", "mlp"),
    ("swin", "cnn"),
    ("cnn", "swin"),
]


def _resmlp(num_classes: int, image_size: int) -> MlpMixer:
    """timm's function for ResMLP fixes its numbers, so that its class is built here."""
    return MlpMixer(
        num_classes=num_classes,
        img_size=image_size,
        patch_size=8,
        num_blocks=4,
        embed_dim=20,
        mlp_ratio=4.0,
        block_layer=ResBlock,
        norm_layer=Affine,
    )


@functools.cache
def _original(family: str, num_classes: int, image_size: int) -> StagedModel:
    # The same weights in every process, whichever test asks first.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "mlp":
            staged = StagedModel(_resmlp(num_classes, image_size), image_size=image_size)
        else:
            name, options = FAMILIES[family]
            staged = create_staged(name, num_classes=num_classes, image_size=image_size, **options)
        assert staged.has_tail
    return staged


def small(
    family: str, seed: int = 0, *, num_classes: int = NUM_CLASSES, image_size: int = SIZE
) -> StagedModel:
    """A model of a family with moved weights of its own."""
    staged = copy.deepcopy(_original(family, num_classes, image_size))
    move_weights(staged.model, seed)
    return staged


def small_pair(student: str, teacher: str) -> tuple[StagedModel, FrozenTeacher]:
    return small(student, 1), FrozenTeacher(small(teacher, 2))


def small_options(name: str) -> dict[str, Any]:
    """The small numbers that a method has a field for."""
    fields = METHODS[name].Config.model_fields
    return {key: value for key, value in SMALL_NUMBERS.items() if key in fields}


def build_small(
    name: str, student: StagedModel, teacher: FrozenTeacher | None, **options: Any
) -> Method:
    """A method of any name, for 64 training images."""
    return build_method(name, student, teacher, **small_options(name) | options)


def random_batch(count: int = 4, image_size: int = SIZE, num_classes: int = NUM_CLASSES) -> Batch:
    """Random images with label distributions such as mixup makes, each another image of 64."""
    images = torch.rand(count, 3, image_size, image_size)
    labels = (2 * torch.randn(count, num_classes)).softmax(dim=1)
    return Batch(images, labels, torch.randperm(NUM_SAMPLES)[:count])


def accepted(names: list[str], *variants: dict[str, Any]) -> list[Any]:
    """Every method with each of the options that it has and that make sense for it."""
    found = []
    for name in names:
        config = METHODS[name].Config
        for options in variants:
            if options.keys() <= config.model_fields.keys():
                try:
                    config(**options)
                except ValueError:
                    continue
                shown = "-".join([name, *(f"{key}={value}" for key, value in options.items())])
                found.append(pytest.param(name, options, id=shown))
    return found


def stored_teacher(
    teacher: FrozenTeacher, holds: Collection[FeaturePart], slot: int = 0
) -> StoredTeacher:
    """The same teacher, of which so much is stored."""
    return StoredTeacher(
        teacher.model,
        teacher.classes,
        slot=slot,
        has_logits="logits" in holds,
        has_pooled="pooled" in holds,
    )


def with_stored(batch: Batch, *teachers: FrozenTeacher | None) -> Batch:
    """The batch with what each teacher says of it, by slot; nothing in the slot of nobody."""
    stored = []
    for teacher in teachers:
        seen = None if teacher is None else teacher(batch.images)
        stored.append(None if seen is None else Stored(seen.logits.clone(), seen.pooled.clone()))
    return replace(batch, stored=tuple(stored))


def fingerprint(state: dict[str, Tensor]) -> dict[str, int]:
    """A checksum of the bits of every tensor."""
    return {key: zlib.crc32(x.detach().contiguous().numpy().tobytes()) for key, x in state.items()}
