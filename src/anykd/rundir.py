"""A run's folder: what its files are called, who may write them, and what they say.

::

    RUN/recipe.toml        the recipe with every default filled in; itself a valid recipe
    RUN/plan.json          who teaches what, and what was found amiss before training
    RUN/environment.json   versions, hardware, commit and command
    RUN/metrics.jsonl      one line for every logged step and every epoch
    RUN/checkpoint/        step-NUMBER, the last two, which --resume continues from;
                           best.safetensors
    RUN/student/           model.safetensors and config.json, which timm loads
    RUN/teacher_head.safetensors   a linear head that was fitted for the teacher; of the second
                           teacher: teacher_2_head.safetensors
    RUN/teacher/           the run that trained the teacher first; of the second: teacher_2/
    RUN/analysis/          analysis.json: student against teacher on held-out images; examples/*.png
    RUN/trackers.json      what the trackers of [track] call the run; tensorboard/ and wandb/ are
                           theirs
    RUN/bad_steps.json     where a run stopped that had no finite loss any more
    RUN/summary.json       the numbers; written last, so it marks a finished run
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anykd.distributed import rank, wait_for_all
from anykd.errors import CheckpointError, first_line
from anykd.files import json_text, make_folder, remove_unfinished, sync, write_atomically, written
from anykd.lock import held, is_lock

__all__ = ["RunDir", "write_atomically", "written"]

_MOMENT = 60.0
"""Seconds that a folder may take to be seen on another machine."""


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
        self.checkpoints = self.path / "checkpoint"
        self.best = self.checkpoints / "best.safetensors"
        self.student = self.path / "student"
        self.summary = self.path / "summary.json"
        self.bad_steps = self.path / "bad_steps.json"
        self.analysis = self.path / "analysis" / "analysis.json"

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

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the folder to this process while it looks at it and writes to it.

        The folder is made where it is missing, and is gone again where nothing was put into it.
        What a killed process left half-written is taken away.

        Raises:
            CheckpointError: If a live process is writing to it, or it cannot be made.
        """
        with written(self.path):
            made = make_folder(self.path)
        try:
            with held(self.path):
                for folder in (self.path, self.checkpoints):
                    remove_unfinished(folder)
                yield
        finally:
            for folder in reversed(made):
                with suppress(OSError):  # it is not empty
                    folder.rmdir()

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint."""
        return any(self.checkpoints.glob("step-[0-9]*"))

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
        if not self.path.is_dir() or all(is_lock(path) for path in self.path.iterdir()):
            return
        if self.finished:
            raise CheckpointError(
                f"{self.path} holds a finished run", hint="give another folder: --out DIR"
            )
        if self.recipe.is_file() and not self.begun and not self.trains_teachers:
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
            CheckpointError: If there is no run, or it is finished.
        """
        if self.finished:
            raise CheckpointError(
                f"{self.path} is finished, there is nothing to resume",
                hint=f"its numbers are in {self.summary}",
            )
        if not self.recipe.is_file():
            raise CheckpointError(
                f"{self.path} holds no run to resume", hint="start it without --resume"
            )

    def require_shared(self) -> None:
        """Refuse a folder that is another one on another machine, once the first rank has begun it.

        Raises:
            CheckpointError: If this rank does not see it within a minute: network file systems
                need a moment.
        """
        wait_for_all()
        end = time.monotonic() + _MOMENT
        while not self.recipe.is_file():
            if time.monotonic() > end:
                raise CheckpointError(
                    f"rank {rank()} on {socket.gethostname()} does not see {self.path}, which the "
                    "first rank has made",
                    hint="all machines must share the run directory: give --out on a shared disk",
                )
            time.sleep(0.5)

    def write_text(self, path: Path, text: str) -> None:
        """Write one of the run's text files whole."""
        write_atomically(path, lambda new: _write_text(new, text))

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Write one of the run's JSON files whole, with null where a number is not finite."""
        self.write_text(path, json_text(values) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Read the numbers of a finished run.

        Raises:
            CheckpointError: If the run has none.
        """
        if not self.finished:
            raise CheckpointError(
                f"{self.path} has no summary.json", hint="give the folder of a finished run"
            )
        return self.read_json(self.summary)

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read one of the run's JSON files.

        Raises:
            CheckpointError: If it is broken.
        """
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{path} is broken: {first_line(error)}",
                hint="bring back a copy of it, or start a new run: --out DIR",
            ) from error

    def log(self, values: dict[str, Any]) -> None:
        """Append one line to the metrics, with null where a number is not finite."""
        with written(self.metrics), self.metrics.open("a") as file:
            file.write(json_text(values, indent=None) + "\n")

    def metrics_bytes(self) -> int:
        """Put the metrics on the disk, and say how long they are."""
        if not self.metrics.is_file():
            return 0
        with written(self.metrics):
            sync(self.metrics)
        return self.metrics.stat().st_size

    def metrics_behind(self, length: int) -> list[dict[str, Any]]:
        """The whole lines behind a checkpoint, which a run that goes on logs again.

        Args:
            length: What `metrics_bytes` was at that checkpoint.
        """
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_bytes()[length:].splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def truncate_metrics(self, length: int) -> None:
        """Drop the lines behind a checkpoint: what they tell of is run again.

        Args:
            length: What `metrics_bytes` was at that checkpoint; shorter metrics are left alone.
        """
        if self.metrics_bytes() > length:
            with written(self.metrics):
                os.truncate(self.metrics, length)
                sync(self.metrics)


def _numbered(teacher: int) -> str:
    return "teacher" if teacher == 1 else f"teacher_{teacher}"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
