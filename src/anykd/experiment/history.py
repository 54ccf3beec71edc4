"""What a run has found so far, kept over an interruption."""

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["History"]


@dataclass
class History:
    """The numbers of a run.

    Attributes:
        teachers: What each teacher scored before training.
        scores: What the student and the method's companions scored last.
        best: The best top-1, or agreement, of any epoch, in percent: beside the result, never
            instead of it.
        best_epoch: When that was, counted from 1.
        seconds: Time spent so far, interruptions not counted.
    """

    teachers: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0

    def add(self, scores: dict[str, Any], epoch: int) -> bool:
        """Take in the scores of an epoch and say whether it is the best so far.

        Without labels, agreement decides; with neither, the latest is the best.
        """
        self.scores = scores
        found = scores.get("top1", scores.get("agreement"))
        if found is None or found > self.best:
            self.best, self.best_epoch = -1.0 if found is None else found, epoch
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)
