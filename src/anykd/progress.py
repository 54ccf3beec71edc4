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
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(compact=True),
        )
        self._last_line = time.monotonic()
        with Bar(*columns, console=self.console, disable=not sys.stderr.isatty()) as bar:
            self._bar = bar
            self._task = bar.add_task("start", total=steps_per_epoch * epochs, completed=steps_done)
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
