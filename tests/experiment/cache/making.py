"""Teachers, caches and runs of a second or two."""

import json
from pathlib import Path
from typing import Any

from anykd.experiment import build_cache, run
from anykd.experiment.cache.use import adopt_views
from anykd.recipe import Recipe

__all__ = ["CNN", "DATA", "VIT", "cache", "recipe", "teacher", "terms", "train"]

DATA = "synthetic:4x12"
VIT = {
    "name": "vit_tiny_patch16_224",
    "options": {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
}
CNN = {"name": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}}


def recipe(**tables: Any) -> Recipe:
    """A recipe of two short epochs; keys of the tables replace those below."""
    values: dict[str, Any] = {
        "image_size": 32,
        "student": VIT,
        "data": {"source": DATA, "workers": 0},
        "augment": {"preset": "cnn"},
        "train": {"epochs": 2, "batch_size": 16, "log_every": 1, "precision": "float32"},
    }
    for name, table in tables.items():
        old = values.get(name)
        if isinstance(old, dict) and isinstance(table, dict) and "name" not in table:
            table = old | table
        values[name] = table
    return Recipe.from_dict(values)


def teacher(folder: Path, model: dict[str, Any] = CNN, **tables: Any) -> Path:
    """A run that has trained a model with labels for an epoch."""
    train = {"epochs": 1, "batch_size": 16, "peak_lr": 1e-2}
    path = folder / f"teacher-{model['name']}"
    run(recipe(student=model, train=train, **tables), path)
    return path


def cache(path: Path, teacher: Path, *, views: int = 2, seed: int = 3, **options: Any) -> Path:
    """What a teacher says of some views."""
    tables = {key: options.pop(key) for key in ("augment", "data", "image_size") if key in options}
    augment = {"num_views": views, "view_seed": seed} | tables.pop("augment", {})
    of = recipe(teacher={"name": str(teacher)}, student=_itself(teacher), augment=augment, **tables)
    build_cache(of, path, **options)
    return path


def _itself(teacher: Path) -> dict[str, Any]:
    return {"name": str(teacher), "pretrained": True}


def train(path: Path, teacher: Path, cache: Path | None, method: Any, **tables: Any) -> Path:
    """A run that learns from a teacher, live or stored, by views that the cache has."""
    table = {"name": str(teacher)} | ({} if cache is None else {"cache": str(cache)})
    method = {"name": method} if isinstance(method, str) else method
    asked = recipe(teacher=table, method=method, **tables)
    run(adopt_views(asked), path)
    return path


def terms(path: Path) -> list[dict[str, float]]:
    """The loss and its terms at every step."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    left_out = {"event", "epoch", "step", "images_per_second", "lr", "bad_steps"}
    return [
        {key: value for key, value in line.items() if key not in left_out}
        for line in lines
        if line["event"] == "step"
    ]
