"""What a cache must be of to take the place of a teacher."""

import hashlib

import torch
from torch import nn

from anykd.data import TrainViews
from anykd.data.cache import DataPart, TeacherPart, TeacherView, ViewsPart
from anykd.data.views import height_width
from anykd.models import FrozenTeacher
from anykd.recipe import TeacherConfig

__all__ = ["data_part", "describe_teacher", "describe_views", "weights_digest"]

_SAMPLE = 8
"""Images of the first view whose pixels are compared."""


def describe_teacher(teacher: FrozenTeacher, config: TeacherConfig) -> TeacherPart:
    """Say who answers.

    Args:
        teacher: With the head and the classes that it answers with.
        config: What a person asked for.
    """
    model, view = teacher.model, teacher.model.view
    return TeacherPart(
        name=teacher.name,
        source=config.name,
        options=config.options,
        weights=weights_digest(model.model),
        classes=teacher.classes,
        num_classes=teacher.num_classes,
        width=teacher.width,
        view=TeacherView(
            image_size=view.image_size,
            interpolation=view.interpolation,
            mean=view.mean,
            std=view.std,
        ),
    )


def data_part(views: TrainViews, source: str) -> DataPart:
    """Say which images are shown.

    Args:
        views: Of them.
        source: The data's spec.
    """
    reader = views.reader
    return DataPart(source=source, fingerprint=reader.fingerprint, samples=len(reader))


def describe_views(views: TrainViews, max_pixels: int) -> ViewsPart:
    """Say how images are shown.

    Args:
        views: Finitely many.
        max_pixels: Images of more are replaced by others.
    """
    assert views.count is not None
    return ViewsPart(
        num_views=views.count,
        seed=views.seed,
        image_size=height_width(views.image_size),
        augment=views.augment.view_settings() | {"max_pixels": max_pixels},
        sample=_sample(views),
    )


def weights_digest(model: nn.Module) -> str:
    """sha256 of a model's parameters and buffers, by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sample(views: TrainViews) -> str:
    """sha256 of the pixels of some images of the first view, in 8 bits.

    So a library that makes other pixels is noticed, and a last bit that depends on the processor
    is not.
    """
    firsts = torch.linspace(0, max(views.num_slots - 2, 0), _SAMPLE // 2).long() // 2 * 2
    chosen = sorted({int(slot) + place for slot in firsts for place in (0, 1)})  # pairs
    positions = views.layout(0)[[slot for slot in chosen if slot < views.num_slots]].tolist()
    images = views.show(0, positions, exact=True).images
    in_bytes = (255 * images).round().clamp(0, 255).byte()
    return hashlib.sha256(in_bytes.numpy().tobytes()).hexdigest()
