"""The trackers of a run: told of every number, and never in the way of training."""

import importlib
import importlib.util
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from anykd.errors import AnykdError, first_line
from anykd.files import write_atomically

from .base import RunToTrack, Tracker
from .config import TrackConfig, TrackerName

__all__ = ["Trackers", "position", "require_trackers"]

_CLASSES: dict[TrackerName, str] = {
    "tensorboard": "TensorBoard",
    "trackio": "Trackio",
    "mlflow": "MLflow",
    "wandb": "WandB",
}

_GROUPS = {"step": "train", "epoch": "val", "diagnosis": "diagnosis"}
"""What the names of each event's numbers begin with."""

_IDS = "trackers.json"

Position = tuple[str, int, int | None]
"""Event, epoch and step of a line of the metrics."""


def require_trackers(config: TrackConfig) -> None:
    """Refuse trackers that are not installed.

    Raises:
        AnykdError: If one is not.
    """
    for name in config.to:
        # A folder of that name that lies where Python was started is no package.
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise AnykdError(
                f"track.to names {name}, which is not installed",
                hint="pip install 'anykd[track]', or leave it out",
            )


class Trackers:
    """The trackers that a recipe names. One that fails is dropped with a word, and no more.

    Args:
        config: Which.
        run: What they are told of the run.
        steps_per_epoch: Optimiser steps.
        warn: Called with a line for each tracker that fails.
        told: For a run that goes on, where its lines were that were logged before it was
            interrupted and are logged again: trackers that know the run are not told twice. None
            for a new run.
    """

    def __init__(
        self,
        config: TrackConfig,
        run: RunToTrack,
        *,
        steps_per_epoch: int,
        warn: Callable[[str], None],
        told: Collection[Position] | None = None,
    ) -> None:
        self.steps_per_epoch, self._warn, self._told = steps_per_epoch, warn, told or ()
        self._trackers: dict[str, Tracker] = {}
        path = run.folder / _IDS
        known = {} if told is None else _read_ids(path)
        for name in config.to:
            self._try(name, lambda name=name: self._open(name, run, known.get(name)))
        self._know_the_run = known.keys()
        ids = {name: tracker.run_id for name, tracker in self._trackers.items()}
        if ids and known | ids != known:
            write_atomically(path, lambda new: _write_json(new, known | ids))

    def _open(self, name: TrackerName, run: RunToTrack, known_as: str | None) -> None:
        made = importlib.import_module(f"anykd.track.{name}")
        tracker = getattr(made, _CLASSES[name])(replace(run, known_as=known_as))
        self._trackers[name] = tracker

    def log(self, line: Mapping[str, Any]) -> None:
        """Tell them of a line of the metrics."""
        first = line["epoch"] * self.steps_per_epoch
        step = first + line.get("step", self.steps_per_epoch - 1)
        where = ("event", "epoch", "step")
        own = {key: value for key, value in line.items() if key not in where}
        values = _numbers(own, _GROUPS[line["event"]])
        was_told = position(line) in self._told
        for name, tracker in list(self._trackers.items()):
            if not (was_told and name in self._know_the_run):
                self._try(name, lambda tracker=tracker: tracker.log(values, step))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Tell them the run's last numbers, or that it was interrupted, and leave them."""
        values = None if summary is None else _numbers(summary)
        for name, tracker in list(self._trackers.items()):
            self._try(name, lambda tracker=tracker: tracker.finish(values))
        self._trackers.clear()

    def _try(self, name: str, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:
            # Whatever it is: what shows a training must not end it.
            self._trackers.pop(name, None)
            self._warn(f"{name} is not told of this run any more: {first_line(error)}")


def position(line: Mapping[str, Any]) -> Position:
    """Where a line of the metrics stands in a run."""
    return line["event"], line["epoch"], line.get("step")


def _numbers(values: Mapping[str, Any], group: str = "") -> dict[str, float]:
    """Numbers by their names, those of a table within it as ``table/name``."""
    found: dict[str, float] = {}
    for key, value in values.items():
        name = f"{group}/{key}" if group else key
        if isinstance(value, Mapping):
            found |= _numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


def _read_ids(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # none, or broken: they begin anew
        return {}


def _write_json(path: Path, values: Mapping[str, str]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
