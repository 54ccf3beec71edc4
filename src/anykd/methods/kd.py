"""KD: match the teacher's softened class distribution."""

from typing import Annotated, final

from pydantic import NonNegativeFloat, PositiveFloat

from anykd.losses import kd_loss
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["KD"]


@final
class KD(Method):
    """Match the teacher's class distribution.

    loss = cross-entropy + kd_weight · kd_loss(student, teacher)

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """

    class Config(MethodConfig):
        """Hyper-parameters of KD."""

        temperature: Annotated[PositiveFloat, Paper("1 in OFA-KD's tables, 4 usual on CIFAR")] = 1.0
        """Divides the scores."""
        kd_weight: Annotated[NonNegativeFloat, Paper("1 in OFA-KD's tables")] = 1.0
        """Factor on the divergence from the teacher."""

        @property
        def scores_student(self) -> bool:
            """Unless its weight is 0."""
            return self.kd_weight > 0

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The class scores."""
            return frozenset(("logits",))

    config: Config

    def joins(self) -> tuple[Join, ...]:
        """The class scores."""
        return (self.join("logits", "divergence of the class scores"),)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the divergence from the teacher."""
        loss = kd_loss(student.logits, teacher.logits, temperature=self.config.temperature)
        return {"kd": self.config.kd_weight * loss}
