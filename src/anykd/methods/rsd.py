"""RSD: agree with the teacher in each coordinate and in nothing twice."""

from typing import Annotated, final

from pydantic import NonNegativeFloat
from torch import nn

from anykd.distributed import gather_batch
from anykd.losses import rsd_loss
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["RSD"]


@final
class RSD(Method):
    """Make the student's vector correlate with the teacher's, coordinate by coordinate alone.

    loss = cross-entropy + rsd_weight · rsd_loss(head(student), teacher)

    The head, Linear → BatchNorm → GELU → Linear, exists in training only and sees the whole batch.

    Source:
        "Cross-Architecture Distillation Made Simple with Redundancy Suppression", ICCV 2025,
        arXiv:2507.21844.
    """

    class Config(MethodConfig):
        """Hyper-parameters of RSD."""

        rsd_weight: Annotated[NonNegativeFloat, Paper("0.1")] = 0.1
        """Factor on the redundancy."""
        off_diagonal_weight: Annotated[NonNegativeFloat, Paper("0.01")] = 0.01
        """κ: factor on correlations between different coordinates, within the redundancy."""

        @property
        def sensible_batch(self) -> int:
            """Each coordinate is correlated over the images."""
            return 16

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The vectors."""
            return frozenset(("pooled",))

    config: Config

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Config) -> None:
        super().__init__(student, teacher, config)
        width = student.width
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width, bias=False),
            nn.BatchNorm1d(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, self.teacher.width, bias=False),
        )

    def joins(self) -> tuple[Join, ...]:
        """The vectors."""
        return (self.join("pooled", "head of two linear layers; correlations", self.head),)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the redundancy of the whole batch."""
        own = self.head(self.whole_batch(student.pooled))
        loss = rsd_loss(
            own,
            gather_batch(teacher.pooled),
            off_diagonal_weight=self.config.off_diagonal_weight,
        )
        return {"rsd": self.config.rsd_weight * loss}
