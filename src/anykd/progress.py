"""What a person sees while a run goes on; everything goes to standard error."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = ["Progress"]

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """A bar where there is a terminal, a line now and then where there is none.

    Args:
        visible: False on all ranks but the first.
    """

    def __init__(self, *, visible: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not visible, highlight=False)
        self._bar: Bar | None = None
        self._task: Any = None
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def training(self, steps_per_epoch: int, epochs: int, steps_done: int = 0) -> Iterator[None]:
        """Show a bar over all steps of a run, from those that are done on."""
        self._steps, self._epochs = steps_per_epoch, epochs
        with self._shown("start", "steps", steps_per_epoch * epochs, steps_done):
            yield

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[None]:
        """Show a bar over things of one kind, which `advance` counts."""
        self._total, self._done, self._what = total, 0, what
        self._begun = time.monotonic()
        with self._shown("", what, total, 0):
            yield

    @contextmanager
    def _shown(self, description: str, unit: str, total: int, done: int) -> Iterator[None]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(compact=True),
        )
        self._last_line = time.monotonic()
        with Bar(*columns, console=self.console, disable=not sys.stderr.isatty()) as bar:
            self._bar = bar
            self._task = bar.add_task(description, total=total, completed=done)
            yield
        self._bar = None

    def step(self, epoch: int, step: int) -> None:
        """Move the bar."""
        assert self._bar is not None
        self._bar.update(
            self._task,
            completed=epoch * self._steps + step + 1,
            description=f"epoch {epoch + 1}/{self._epochs}",
        )

    def advance(self, count: int) -> None:
        """Count things of `counting`; without a terminal, print how many now and then."""
        assert self._bar is not None
        self._done += count
        self._bar.update(self._task, completed=self._done)
        now = time.monotonic()
        if sys.stderr.isatty() or now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = (now - self._begun) / self._done * (self._total - self._done)
        self.say(f"{self._done:,} of {self._total:,} {self._what}, {left:.0f} s left")

    def epoch(self, done: int, scores: dict[str, Any]) -> None:
        """Print what an evaluation found: always on a terminal, else not too often."""
        now = time.monotonic()
        often = sys.stderr.isatty() or now - self._last_line > _SECONDS_BETWEEN_LINES
        if not often and done < self._epochs:
            return
        self._last_line = now
        names = [name for name in scores if name.endswith(("top1", "agreement"))]
        found = ", ".join(f"{_label(name)} {scores[name]:.2f} %" for name in names)
        self.say(f"epoch {done}/{self._epochs}: {found or 'done'}")


def _label(name: str) -> str:
    return name.replace("_", " ").replace("top1", "top-1")
