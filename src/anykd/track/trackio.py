"""trackio: a database beside the runs, shown by ``trackio show``."""

import io
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, final

from .base import RunToTrack, environment_default

__all__ = ["Trackio"]

_DIR = "TRACKIO_DIR"
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


@final
class Trackio:
    """Writes to ``TRACKIO_DIR``, else to ``trackio`` in the folder that holds the run directory.

    Only a ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL`` of your own sends numbers anywhere else.
    trackio goes on with runs by their names, so each gets a name that no other has:
    ``NAME-`` and eight letters and digits.

    Raises:
        OSError: If the folder cannot be written to.
        RuntimeError: If this process has used trackio with another folder, which it keeps.
    """

    def __init__(self, run: RunToTrack) -> None:
        self._failures: list[str] = []
        self._is_local = not any(map(os.environ.get, _ELSEWHERE))
        self._trackio = _import(run.folder.resolve().parent / "trackio")
        self.run_id = run.known_as or f"{run.name}-{uuid.uuid4().hex[:8]}"
        with self._quiet():
            self._run = self._trackio.init(
                run.project,
                name=self.run_id,
                config=dict(run.settings),
                resume="never" if run.known_as is None else "allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        # What fails later fails in a thread of its own, and trackio only warns of it. Of a run
        # that it sends somewhere it keeps what did not get through, and sends it later.
        self._run._warn_once = lambda _, message: self._failures.append(message)
        self._require_no_failure()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a row."""
        self._require_no_failure()
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float] | None) -> None:
        """Add the last numbers as a row and wait until all is written."""
        if summary:
            self._run.log({f"summary/{name}": value for name, value in summary.items()})
        self._close()
        if self._failures:
            raise OSError(self._failures[0])

    def _require_no_failure(self) -> None:
        if self._is_local and self._failures:
            self._close()
            raise OSError(self._failures[0])

    def _close(self) -> None:
        with self._quiet():
            self._trackio.finish()  # the current run, which is this one; else it speaks at exit

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Keep what trackio prints from the screen, and its warnings as failures."""
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("ignore")  # of other libraries, when they are used
            warnings.filterwarnings("always", module=r"trackio\.", category=UserWarning)
            yield
        self._failures += [str(warning.message) for warning in found]


def _import(beside: Path) -> Any:
    """Import trackio, which learns only then where it writes to."""
    with environment_default(_DIR, str(beside)):
        wanted = Path(os.environ[_DIR]).absolute()
        import trackio
    used = trackio.utils.TRACKIO_DIR.absolute()
    if used != wanted:
        raise RuntimeError(
            f"this process uses it with {used} and cannot change to {wanted}; "
            f"set {_DIR} to have one folder for all runs"
        )
    wanted.mkdir(parents=True, exist_ok=True)
    return trackio
