"""Control: the same training without a teacher."""

from typing import ClassVar, final

from pydantic import PositiveFloat

from anykd.types import Batch, StepOutput

from .base import Method, MethodConfig

__all__ = ["Control"]


@final
class Control(Method):
    """Train with the labels alone: the arm that every other method is compared with.

    loss = cross-entropy
    """

    class Config(MethodConfig):
        """Hyper-parameters of the control arm."""

        task_weight: PositiveFloat = 1.0
        """Factor on the cross-entropy with the labels, of which control has nothing beside."""

    config: Config
    needs_teacher: ClassVar[bool] = False

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the task term."""
        logits = self.student(batch.images).logits
        return StepOutput(logits, self.task_terms(logits, batch))
