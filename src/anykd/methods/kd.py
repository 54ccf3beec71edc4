"""KD: match the teacher's softened class distribution."""

from typing import final

from pydantic import NonNegativeFloat, PositiveFloat

from anykd.losses import kd_loss
from anykd.types import Batch, StepOutput

from .base import Method, MethodConfig

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

        temperature: PositiveFloat = 1.0
        """Divides the scores; 1 in OFA-KD's protocol, 4 is usual on CIFAR."""
        kd_weight: NonNegativeFloat = 1.0
        """Factor on the divergence from the teacher."""

    config: Config

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the task and KD terms."""
        logits = self.student(batch.images).logits
        target = self.teacher(batch.images).logits
        loss = kd_loss(logits, target, temperature=self.config.temperature)
        terms = self.task_terms(logits, batch) | {"kd": self.config.kd_weight * loss}
        return StepOutput(logits, terms)
