"""A small cache, whose records say where they belong."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anykd.data.cache import (
    Cache,
    CacheWriter,
    Codec,
    DataPart,
    Layout,
    Manifest,
    ShardKey,
    TeacherPart,
    TeacherView,
    ViewsPart,
)

CLASSES, WIDTH = 10, 3
CODEC = Codec(num_classes=CLASSES, top_k=4, pooled_width=WIDTH)

_PARTS: dict[str, type] = {"teacher": TeacherPart, "data": DataPart, "views": ViewsPart}


def manifest(*, views: int = 2, slots: int = 101, codec: Codec = CODEC, **changes: Any) -> Manifest:
    """What a cache was made of.

    Args:
        views: Views.
        slots: Slots of a view.
        codec: What is stored.
        changes: Other values, by names such as ``teacher_name``.
    """
    layout = Layout.planned(num_views=views, num_slots=slots, record_bytes=codec.record_bytes)
    view = TeacherView(
        image_size=(224, 224), interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    tables: dict[str, dict[str, Any]] = {
        "teacher": {"name": "vit", "source": "runs/vit", "weights": "1a2b" * 16, "view": view}
        | {"num_classes": CLASSES, "width": WIDTH},
        "data": {"source": "digits", "fingerprint": "5e" * 32, "samples": slots},
        "views": {"num_views": views, "seed": 0, "image_size": 64, "sample": "77" * 32}
        | {"augment": {"crop_scale": (0.08, 1.0), "flip": 0.5}},
    }
    rest: dict[str, Any] = {"precision": "float32", "shard_slots": layout.shard_slots}
    for name, value in changes.items():
        table, _, field = name.partition("_")
        if table in tables and field:
            tables[table][field] = value
        else:
            rest[name] = value
    parts = {name: _PARTS[name](**values) for name, values in tables.items()}
    return Manifest(**parts, codec=codec, num_slots=slots, **rest)


def answers(view: int, slots: range | list[int], codec: Codec = CODEC) -> tuple[Tensor, Tensor]:
    """What the teacher says: another thing for every view and slot."""
    rng = [np.random.default_rng((view, slot)) for slot in slots]
    numbers = np.stack([each.normal(size=codec.num_classes + codec.pooled_width) for each in rng])
    both = torch.from_numpy(numbers).float()
    return 4 * both[:, : codec.num_classes], both[:, codec.num_classes :]


def records(shard: ShardKey, codec: Codec = CODEC) -> np.ndarray:
    """The records of a file."""
    return codec.encode(*answers(shard.view, shard.slots, codec))


def build(path: Path, what: Manifest | None = None) -> Cache:
    """Write a cache in one go, or to its end."""
    what = what or manifest()
    with CacheWriter(path, what) as writer:
        for shard in writer.todo():
            writer.write(shard, records(shard, what.codec))
        writer.finish()
    return Cache(path)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder, and empty folders too."""
    return {
        str(each.relative_to(path)): each.read_bytes() if each.is_file() else b""
        for each in sorted(path.rglob("*"))
    }
