"""The plan of a run: who teaches what, what it costs, and what is amiss."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from anykd.methods.joins import Join

from .cache import CacheSize
from .cost import Cost
from .finding import Finding
from .models import ModelFacts
from .text import short_text, whole_text

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What a run would be.

    Attributes:
        method: Name of the method, or of several, such as ``ofa+fitnet``.
        data: Its spec, and how many images it has of how many classes.
        models: The student, then its teachers; nothing where the run is impossible.
        joins: Where they meet.
        trains: Parameters that train: of the student, and of each module of the method's own.
        keeps_bytes: Size of the student, which alone is kept.
        cache: What storing the teachers' outputs would take; None without a teacher.
        cost: Measured; None where nobody asked.
        findings: Errors first.
    """

    method: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[ModelFacts, ...] = ()
    joins: tuple[Join, ...] = ()
    trains: Mapping[str, int] = field(default_factory=dict)
    keeps_bytes: int = 0
    cache: CacheSize | None = None
    cost: Cost | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a run unless it is forced."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def text(self, *, width: int = 80, color: bool = False) -> str:
        """Lay the plan out for a person.

        Args:
            width: Columns at most.
            color: Whether to mark headings and severities by colour.
        """
        return whole_text(self, width=width, color=color)

    def short_text(self, *, width: int = 80) -> str:
        """Who teaches what, and where the two meet: the first lines of a run."""
        return short_text(self, width=width)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)
