"""A sentence that follows from the numbers of a run."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Sign"]


@dataclass(frozen=True)
class Sign:
    """One thing that the numbers of a run say about it.

    Attributes:
        severity: A warning asks for something to be done; a note is worth knowing; good is good.
        code: Short name that does not change, such as ``term-did-not-fall``.
        message: What the numbers say, with the numbers, on one line.
        remedy: What would mend it, on one line; empty where nothing has to be mended.
    """

    severity: Literal["good", "note", "warning"]
    code: str
    message: str
    remedy: str = ""
