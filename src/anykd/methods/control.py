"""Control: the same training without a teacher."""

from typing import Annotated, ClassVar, final

from pydantic import PositiveFloat

from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Method, MethodConfig, Paper

__all__ = ["Control"]


@final
class Control(Method):
    """Train with the labels alone: the arm that every other method is compared with.

    loss = cross-entropy
    """

    class Config(MethodConfig):
        """Hyper-parameters of the control arm."""

        task_weight: Annotated[PositiveFloat, Paper("1")] = 1.0
        """Factor on the cross-entropy with the labels, of which control has nothing beside."""

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """Nothing of a teacher."""
            return frozenset()

    config: Config
    needs_teacher: ClassVar[bool] = False

    def terms(self, batch: Batch, student: Features, teacher: Features | None) -> Terms:
        """Compute nothing beside the task term."""
        return {}
