"""trackio: a database in its own folder on this machine, shown by ``trackio show``."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import final

import trackio

from .base import RunToTrack

__all__ = ["Trackio"]


@final
class Trackio:
    """Writes to ``TRACKIO_DIR``, else to trackio's own folder.

    Only a ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL`` of your own sends anything elsewhere.
    trackio knows runs by their names, so a run goes on under its name.
    """

    def __init__(self, run: RunToTrack) -> None:
        with redirect_stdout(sys.stderr):  # results alone go to standard output
            self._run = trackio.init(
                run.project,
                name=run.known_as or run.name,
                config=dict(run.settings),
                resume="never" if run.known_as is None else "allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.run_id = self._run.name

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a row."""
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float] | None) -> None:
        """Add the last numbers as a row and wait until all is written."""
        with redirect_stdout(sys.stderr):
            if summary:
                self._run.log({f"summary/{name}": value for name, value in summary.items()})
            trackio.finish()  # of the current run, which is this one; else it speaks again at exit
