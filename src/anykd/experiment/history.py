"""What a run has found so far, kept over an interruption."""

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["History"]


@dataclass
class History:
    """The numbers of a run.

    Attributes:
        teacher: What the teacher scored before training; None without one.
        scores: What the student and the method's companions scored last.
        best_top1: The best top-1 of any epoch, in percent: beside the result, never instead of it.
        best_epoch: When that was, counted from 1.
        seconds: Time spent so far, interruptions not counted.
    """

    teacher: dict[str, Any] | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    best_top1: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0

    def add(self, scores: dict[str, Any], epoch: int) -> bool:
        """Take in the scores of an epoch and say whether it is the best so far."""
        self.scores = scores
        is_best = scores["top1"] > self.best_top1
        if is_best:
            self.best_top1, self.best_epoch = scores["top1"], epoch
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)
