"""A run's folder: what it is called, and how its files are written so that none is ever half there.

::

    RUN/recipe.toml        the recipe with every default filled in; itself a valid recipe
    RUN/plan.json          who teaches what, and what was found amiss before training
    RUN/environment.json   versions, hardware, commit and command
    RUN/metrics.jsonl      one line for every logged step and every epoch
    RUN/checkpoint/        last.pt, which --resume continues from; best.safetensors
    RUN/student/           model.safetensors and config.json, which timm loads
    RUN/teacher_head.safetensors   a linear head that was fitted for the teacher; of the second
                           teacher: teacher_2_head.safetensors
    RUN/teacher/           the run that trained the teacher first; of the second: teacher_2/
    RUN/summary.json       the numbers; written last, so it marks a finished run
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anykd.errors import CheckpointError

__all__ = ["RunDir", "write_atomically"]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder under another name and put it in place whole.

    Args:
        path: Where it goes; what is there is replaced.
        write: Writes the file or folder to the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        new = folder / path.name
        write(new)
        for file in [new, *new.rglob("*")] if new.is_dir() else [new]:
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.is_dir():
            path.rename(folder / "old")
        new.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class RunDir:
    """The folder of one run.

    Args:
        path: Where it is; nothing is made yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.plan = self.path / "plan.json"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.last = self.path / "checkpoint" / "last.pt"
        self.best = self.path / "checkpoint" / "best.safetensors"
        self.student = self.path / "student"
        self.summary = self.path / "summary.json"

    def teacher(self, number: int) -> "RunDir":
        """The run that trains a teacher first.

        Args:
            number: Of the teacher, counted from 1.
        """
        return RunDir(self.path / _numbered(number))

    def teacher_head(self, number: int) -> Path:
        """The linear head that was fitted for a teacher.

        Args:
            number: Of the teacher, counted from 1.
        """
        return self.path / f"{_numbered(number)}_head.safetensors"

    @property
    def trains_teachers(self) -> bool:
        """Whether a teacher has been trained here, or been begun to."""
        return any(path.is_dir() for path in self.path.glob("teacher*"))

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.summary.is_file()

    def require_new(self) -> None:
        """Refuse a folder that holds a run, or anything else.

        Raises:
            CheckpointError: If the folder is not empty, or cannot be made.
        """
        if self.path.is_file():
            raise CheckpointError(f"{self.path} is a file", hint="give a folder: --out DIR")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if self.finished:
            raise CheckpointError(
                f"{self.path} holds a finished run", hint="give another folder: --out DIR"
            )
        if self.recipe.is_file() and not self.last.is_file() and not self.trains_teachers:
            return  # it ended before its first checkpoint: there is nothing to lose
        if self.recipe.is_file():
            raise CheckpointError(
                f"{self.path} holds an unfinished run",
                hint="continue it with --resume, or give another folder: --out DIR",
            )
        raise CheckpointError(f"{self.path} is not empty", hint="give another folder: --out DIR")

    def require_unfinished(self) -> None:
        """Refuse a folder that has nothing to continue.

        Raises:
            CheckpointError: If there is no checkpoint, or the run is finished.
        """
        if self.finished:
            raise CheckpointError(
                f"{self.path} is finished, there is nothing to resume",
                hint=f"its numbers are in {self.summary}",
            )
        if not self.last.is_file() and not self.trains_teachers:
            raise CheckpointError(
                f"{self.path} has no checkpoint to resume from",
                hint="start it without --resume",
            )

    def write_text(self, path: Path, text: str) -> None:
        """Write one of the run's text files whole."""
        write_atomically(path, lambda new: _write_text(new, text))

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Write one of the run's JSON files whole."""
        self.write_text(path, json.dumps(values, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Read the numbers of a finished run.

        Raises:
            CheckpointError: If the run has none.
        """
        if not self.finished:
            raise CheckpointError(
                f"{self.path} has no summary.json", hint="give the folder of a finished run"
            )
        return json.loads(self.summary.read_text())

    def log(self, values: dict[str, Any]) -> None:
        """Append one line to the metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def keep_metrics(self, *, epochs: int) -> None:
        """Drop the lines behind a checkpoint: the epochs that are done stay, the rest is rerun.

        Args:
            epochs: How many epochs are done.
        """
        if not self.metrics.is_file():
            return
        lines = self.metrics.read_text().splitlines(keepends=True)
        kept = "".join(line for line in lines if _epoch_of(line) < epochs)
        self.write_text(self.metrics, kept)


def _numbered(teacher: int) -> str:
    return "teacher" if teacher == 1 else f"teacher_{teacher}"


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError):
        return float("inf")  # a line torn by the end of its process


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
