"""What a run directory tells: its files, read and sorted."""

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anykd.errors import CheckpointError, first_line
from anykd.rundir import RunDir

__all__ = ["RunRecord", "read_run"]

Values = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run wrote about itself. What a run before its end lacks is empty.

    Attributes:
        path: The run directory.
        recipe: The tables of ``recipe.toml``.
        plan: ``plan.json``.
        environment: ``environment.json``.
        summary: ``summary.json``.
        analysis: ``analysis/analysis.json``.
        steps: The lines of ``metrics.jsonl`` with the event ``step``, in order.
        epochs: Those with the event ``epoch``: scores on the held-out images.
        diagnoses: Those with the event ``diagnosis``: shares of the gradient and of the time.
    """

    path: Path
    recipe: Values
    plan: Values = field(default_factory=dict)
    environment: Values = field(default_factory=dict)
    summary: Values = field(default_factory=dict)
    analysis: Values = field(default_factory=dict)
    steps: tuple[Values, ...] = ()
    epochs: tuple[Values, ...] = ()
    diagnoses: tuple[Values, ...] = ()

    @property
    def method(self) -> str:
        """Which method, or which several, such as ``ofa+fitnet``."""
        tables = self.recipe["method"]
        several = tables if isinstance(tables, list) else [tables]
        return "+".join(table["name"] for table in several)

    @property
    def seed(self) -> int:
        """Of its random choices."""
        return self.recipe["seed"]


def read_run(path: str | Path) -> RunRecord:
    """Read a run, finished or not.

    Args:
        path: A run directory.

    Raises:
        CheckpointError: If there is no run, or one of its files is broken.
    """
    directory = RunDir(path)
    if not directory.recipe.is_file():
        raise CheckpointError(f"{path} is no run", hint="give the --out folder of a training")
    lines = _read_lines(directory.metrics)
    by_event = {
        event: tuple(line for line in lines if line.get("event") == event)
        for event in ("step", "epoch", "diagnosis")
    }
    return RunRecord(
        path=directory.path,
        recipe=_read_recipe(directory.recipe),
        plan=_read_json(directory, directory.plan),
        environment=_read_json(directory, directory.environment),
        summary=_read_json(directory, directory.summary),
        analysis=_read_json(directory, directory.analysis),
        steps=by_event["step"],
        epochs=by_event["epoch"],
        diagnoses=by_event["diagnosis"],
    )


def _read_recipe(path: Path) -> Values:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is broken: {first_line(error)}") from None


def _read_json(directory: RunDir, path: Path) -> Values:
    return directory.read_json(path) if path.is_file() else {}


def _read_lines(path: Path) -> list[Values]:
    """The lines of the metrics; a run that is being written may have a torn last one."""
    if not path.is_file():
        return []
    found: list[Values] = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise CheckpointError(f"{path} is broken in line {number}") from None
    return found
