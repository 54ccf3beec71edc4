"""The factor on the loss that keeps small gradients alive in half precision."""

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["LossScale"]


@dataclass
class LossScale:
    """A loss scale that falls where gradients overflow, and rises while they do not.

    torch's GradScaler keeps its own flag of overflow on each rank, which sharded gradients set on
    some of them alone. The trainer has one flag that all ranks agree on, so this much is left.

    Attributes:
        value: Factor on the loss; 1 leaves it.
        enabled: Whether the loss is scaled at all.
        good_steps: Steps since the factor last changed.

    Source:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv:1710.03740, with the
        numbers of torch's GradScaler.
    """

    value: float = 1.0
    enabled: bool = False
    good_steps: int = 0

    START: ClassVar[float] = 2.0**16
    EVERY: ClassVar[int] = 2_000
    """Steps without overflow after which the factor doubles."""

    @classmethod
    def for_precision(cls, precision: str) -> "LossScale":
        """Scale for fp16; bf16 has the range of float32 and needs none."""
        return cls(cls.START, enabled=True) if precision == "fp16" else cls()

    def overflowed(self, value: float) -> bool:
        """Halve the factor after gradients that are not finite.

        Args:
            value: The factor of that step. Where it is known late, steps behind it were taken with
                the same factor: they halve it no further.

        Returns:
            Whether it could be halved: without a scale, or at 1, something else is wrong.
        """
        if not self.enabled or value <= 1:
            return False
        self.value, self.good_steps = min(self.value, value / 2), 0
        return True

    def succeeded(self) -> None:
        """Count a step with finite gradients."""
        if not self.enabled:
            return
        self.good_steps += 1
        if self.good_steps == self.EVERY:
            self.value, self.good_steps = self.value * 2, 0
