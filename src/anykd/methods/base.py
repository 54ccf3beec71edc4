"""What a method is: a student, a teacher, and the terms of a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from anykd.config import FrozenConfig
from anykd.errors import DataError, RecipeError
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Batch, StepOutput

__all__ = ["Classifier", "Method", "MethodConfig"]

Classifier = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch classes"]]


class MethodConfig(FrozenConfig):
    """Hyper-parameters that every method has."""

    task_weight: NonNegativeFloat = 1.0
    """Factor on the cross-entropy with the labels; 0 trains without labels where the method can."""


class Method(nn.Module, ABC):
    """One way to teach a student.

    A method owns the student and whatever it trains beside it, and turns a batch into named,
    weighted loss terms. It knows nothing of data, optimisers, devices or logging.

    Subclasses are final: tune one through its ``Config``, extend one by wrapping it.

    Args:
        student: The model that is trained and kept.
        teacher: The model that teaches. None will do for a method that needs none.
        config: An instance of the class's ``Config``.
    """

    Config: ClassVar[type[MethodConfig]]
    needs_teacher: ClassVar[bool] = True

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Any) -> None:
        super().__init__()
        self.student = student
        self._teacher = teacher
        self.config = config
        if not self.needs_teacher:
            return
        if teacher is None:
            raise RecipeError(
                f"the method {type(self).__name__} needs a teacher", hint="give --teacher MODEL"
            )
        if teacher.num_classes != student.num_classes:
            raise RecipeError(
                f"the teacher {teacher.name} knows {teacher.num_classes} classes, "
                f"the student {student.name} {student.num_classes}",
                hint="both must score the same classes",
            )

    @property
    def teacher(self) -> FrozenTeacher:
        """The teacher; only for methods that need one."""
        assert self._teacher is not None
        return self._teacher

    @abstractmethod
    def forward(self, batch: Batch) -> StepOutput:
        """Compute the loss terms of one batch on this rank."""

    def task_terms(
        self, logits: Float[Tensor, "batch classes"], batch: Batch
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the weighted cross-entropy with the labels; nothing where its weight is 0."""
        if self.config.task_weight == 0:
            return {}
        loss = F.cross_entropy(logits.float(), self.labels(batch))
        return {"task": self.config.task_weight * loss}

    def labels(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """The labels of a batch, for a method that needs them.

        Raises:
            DataError: If the batch has none.
        """
        if batch.labels is None:
            raise DataError(
                f"{type(self).__name__} needs labels and the data has none",
                hint="set method.task_weight = 0 with a method that needs none, such as kd",
            )
        return batch.labels

    def companions(self) -> dict[str, Classifier]:
        """Classifiers beside the student whose accuracy is worth knowing, by name."""
        return {}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, the student's own included."""
        names: set[str] = set()
        for path, module in self.named_modules():
            own = getattr(module, "no_weight_decay", None)
            # Inside the student only its wrapper is asked: it passes timm's list on.
            if own is not None and module is not self and not path.startswith("student."):
                names |= {f"{path}.{name}" for name in own()}
        return names
