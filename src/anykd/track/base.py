"""What every tracker can do, and the run that it is told of."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["RunToTrack", "Tracker", "environment_default"]


@dataclass(frozen=True)
class RunToTrack:
    """What a tracker learns of a run before the first number.

    Attributes:
        folder: The run directory.
        project: What the run is filed under.
        name: What it is called.
        settings: Every setting of the recipe by its dotted key, such as ``train.peak_lr``.
        known_as: What the tracker called the run before an interruption; None for a new one.
    """

    folder: Path
    project: str
    name: str
    settings: Mapping[str, Any]
    known_as: str | None = None


class Tracker(Protocol):
    """One run in one tracker. Its class is called with a `RunToTrack`.

    Attributes:
        run_id: What the tracker calls the run, so that it goes on with it after an interruption.
    """

    run_id: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take in numbers by name; steps never go back."""
        ...

    def finish(self, summary: Mapping[str, float] | None) -> None:
        """Take in the run's last numbers and close; None where it was interrupted."""
        ...


@contextmanager
def environment_default(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a while, unless the user has set it."""
    before = os.environ.get(name)
    if before:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:  # the next run lies elsewhere, and has a default of its own
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
