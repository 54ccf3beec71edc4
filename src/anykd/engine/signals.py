"""What happens at Ctrl-C and at SIGTERM: training stops where it can go on from."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from anykd.errors import StoppedError

from .launch import IS_RANK

__all__ = ["StopSignals"]

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Catches SIGINT and SIGTERM while it is entered.

    Outside of `deferred` a signal raises at once. Within, it is noted for whoever asks, and a
    second one ends the process as if nothing was caught; not so a rank of torchrun, which ends it
    by force in the end. In other threads than the main one nothing is caught: only that one may.

    Attributes:
        caught: Number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._deferring = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _CAUGHT}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals for a while, instead of raising."""
        before, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise at a signal again for a while, first of all at one that was noted."""
        before, self._deferring = self._deferring, False
        try:
            self.check()
            yield
        finally:
            self._deferring = before

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.caught is not None

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            StoppedError: With its number.
        """
        if self.caught is not None:
            raise StoppedError(self.caught)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked, such as a loader's worker
            return
        if self.caught is not None and IS_RANK:
            return  # schedulers signal every process, and torchrun passes on what it got itself
        self.caught = number
        if not self._deferring:
            self.check()
        if not IS_RANK:
            self._restore()
        # The signal may have gone to the loader's workers too. torch would raise in the middle of
        # the step at hand when one of them ends, and no further batch is needed.
        before = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._before.setdefault(signal.SIGCHLD, before)

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
