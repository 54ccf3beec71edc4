"""Which settings a run may go on with, where they are not those that it began with."""

import tomllib
from collections.abc import Iterator
from typing import Any

from anykd.errors import CheckpointError
from anykd.recipe import Recipe, read_toml
from anykd.rundir import RunDir

__all__ = ["changed_settings", "require_same_recipe"]

_FREE = frozenset(
    (
        *("data.workers", "data.prefetch", "data.pin_memory", "data.persistent_workers"),
        "data.decoded",
        *("train.device", "train.fsdp", "teacher.fsdp", "train.grad_checkpointing"),
        *("train.checkpoint_every", "train.max_bad_steps", "train.log_every"),
        *("analysis.num_samples", "analysis.num_examples"),
    )
)
"""Settings that decide where and how a run is computed, and not what comes of it."""


def require_same_recipe(recipe: Recipe, directory: RunDir, *, force: bool) -> list[str]:
    """Refuse to go on with settings that make another run of it.

    Args:
        recipe: What is asked for now.
        directory: The run, with the recipe that it began with.
        force: Let all of them change; where the models change, the checkpoint will not fit.

    Returns:
        The settings that change.

    Raises:
        CheckpointError: If a setting changes that decides the result, and nothing is forced.
    """
    began = Recipe.from_dict(read_toml(directory.recipe), source=str(directory.recipe))
    changed = changed_settings(began, recipe)
    decisive = [key for key in changed if _without_number(key) not in _FREE]
    if decisive and not force:
        raise CheckpointError(
            f"{directory.path} is a run of another recipe: {', '.join(decisive[:5])}"
            + (", ..." if len(decisive) > 5 else ""),
            hint="resume it by --resume --out alone, go on with the new settings by --force, or "
            "start a new run elsewhere",
        )
    return changed


def changed_settings(before: Recipe, after: Recipe) -> list[str]:
    """Dotted keys in which two recipes differ, such as ``train.peak_lr`` or ``teacher.2.name``."""
    old, new = (dict(_flat(tomllib.loads(recipe.to_toml()))) for recipe in (before, after))
    missing = object()
    return [key for key in sorted(old | new) if old.get(key, missing) != new.get(key, missing)]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted keys; items of a list are counted from 1."""
    if isinstance(value, dict):
        for key, own in value.items():
            yield from _flat(own, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(own, dict) for own in value):
        for number, own in enumerate(value, start=1):
            yield from _flat(own, f"{path}.{number}")
    else:
        yield path, value


def _without_number(key: str) -> str:
    return ".".join(part for part in key.split(".") if not part.isdigit())
