"""Steps that were taken and whose outcome the host does not know yet."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anykd.errors import DataError

from .readings import Reading
from .step import BadStep, Step, Stepper

__all__ = ["BadStepsError", "StepsInFlight"]


class BadStepsError(DataError):
    """Too many steps in a row had no finite loss and gradient.

    Attributes:
        record: Plain values for a look: the position, the terms, the images.
    """

    def __init__(self, message: str, hint: str, record: dict[str, Any]) -> None:
        super().__init__(message, hint)
        self.record = record


@dataclass(frozen=True)
class _Taken:
    """A step whose outcome the host does not know yet."""

    epoch: int
    number: int
    step: Step
    reading: Reading


class StepsInFlight:
    """The last steps that were taken, in their order, and the count of the bad ones.

    Args:
        stepper: Took them.
        behind: How many steps late the host may learn what came of one.
        max_bad_steps: So many bad steps in a row are too many.

    Attributes:
        bad_steps: Steps that were skipped because the loss or a gradient was not finite.
        bad_in_a_row: How many of the last ones.
    """

    def __init__(self, stepper: Stepper, *, behind: int, max_bad_steps: int) -> None:
        self.stepper, self.behind, self.max_bad_steps = stepper, behind, max_bad_steps
        self.bad_steps, self.bad_in_a_row = 0, 0
        self._taken: deque[_Taken] = deque()

    def add(self, epoch: int, number: int, step: Step) -> None:
        """Note a step that was just taken."""
        self._taken.append(_Taken(epoch, number, step, Reading(step.report)))

    def look_back(self, warn: Callable[[str], None], *, at_all: bool) -> bool:
        """Learn what came of steps. All ranks look at the same ones at the same time.

        Args:
            warn: Called with a line on the first bad step of a row.
            at_all: At all steps, for which the host waits, or but for the last few of them.

        Returns:
            Whether a rank asked to stop.

        Raises:
            BadStepsError: If too many in a row were bad.
        """
        stops = False
        while len(self._taken) > (0 if at_all else self.behind):
            one = self._taken.popleft()
            outcome = self.stepper.outcome(one.step, one.reading.get())
            stops |= outcome.stop
            if outcome.bad is not None:
                self._count(one, outcome.bad, warn)
            elif not outcome.overflowed:
                self.bad_in_a_row = 0
        return stops

    def _count(self, taken: _Taken, bad: BadStep, warn: Callable[[str], None]) -> None:
        where = f"epoch {taken.epoch + 1}, step {taken.number + 1}"
        self.bad_steps += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row == 1:
            warn(f"{where} was skipped: {bad.named}")
        if self.bad_in_a_row < self.max_bad_steps:
            return
        raise BadStepsError(
            f"{self.bad_in_a_row} steps in a row had no finite loss and gradient; in {where} "
            f"{bad.named}",
            hint="lower train.peak_lr, set train.clip_grad = 5, or train.precision = 'float32'",
            record={
                "epoch": taken.epoch,
                "step": taken.number,
                "terms": [{name: repr(value) for name, value in t.items()} for t in bad.terms],
                "parameters": bad.parameters,
                "indices": bad.indices,
                "bad_steps": self.bad_steps,
                "loss_scale": taken.step.scale,
            },
        )
