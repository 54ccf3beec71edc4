"""Something that a plan found."""

from dataclasses import dataclass
from typing import Literal

from anykd.errors import AnykdError

__all__ = ["Finding", "Severity", "impossible"]

_HOPELESS = ("impossible", "labels-out-of-range", "unreadable-images")

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know before training.

    Attributes:
        severity: An error stops training unless it is forced; a warning is kept with the run; a
            note is worth knowing.
        code: Short name that does not change, such as ``class-imbalance``.
        message: What was found, on one line.
        remedy: What would mend it, on one line.
    """

    severity: Severity
    code: str
    message: str
    remedy: str

    @property
    def is_hopeless(self) -> bool:
        """Whether training would break off at it, so that no force helps."""
        return self.code in _HOPELESS


def impossible(error: AnykdError) -> Finding:
    """What cannot be done at all, as a finding; no force helps."""
    return Finding("error", "impossible", str(error), error.hint)
