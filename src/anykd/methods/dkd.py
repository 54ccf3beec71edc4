"""DKD: weigh the teacher's confidence in the target apart from how it ranks the other classes."""

from typing import Annotated, final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from anykd.losses import dkd_loss
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["DKD"]


@final
class DKD(Method):
    """Match the target's probability and the ranking of the other classes, each with a weight.

    loss = cross-entropy + dkd_weight · dkd_loss(student, teacher)

    Source:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679.
    """

    class Config(MethodConfig):
        """Hyper-parameters of DKD."""

        alpha: Annotated[NonNegativeFloat, Paper("1")] = 1.0
        """Factor on the divergence of target against the rest."""
        beta: Annotated[
            NonNegativeFloat, Paper("2 in OFA-KD's tables; 8 for most CIFAR pairs of DKD's paper")
        ] = 2.0
        """Factor on the divergence among the other classes."""
        temperature: Annotated[
            PositiveFloat, Paper("1 in OFA-KD's tables; 4 on CIFAR in DKD's paper")
        ] = 1.0
        """Divides the scores."""
        dkd_weight: Annotated[NonNegativeFloat, Paper("1")] = 1.0
        """Factor on the whole term."""
        ramp_steps: Annotated[
            NonNegativeInt, Paper("none in OFA-KD's tables; those of 20 epochs in DKD's paper")
        ] = 0
        """Training steps over which the term grows from 0 to its full weight."""

        @property
        def scores_student(self) -> bool:
            """Unless its weight is 0."""
            return self.dkd_weight > 0

        @property
        def needs_labels(self) -> bool:
            """The target class is a label's."""
            return True

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The class scores."""
            return frozenset(("logits",))

    config: Config
    steps: Tensor

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Config) -> None:
        super().__init__(student, teacher, config)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def joins(self) -> tuple[Join, ...]:
        """The class scores."""
        return (self.join("logits", "decoupled divergence of the class scores"),)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the decoupled divergence from the teacher."""
        config = self.config
        loss = dkd_loss(
            student.logits,
            teacher.logits,
            self.labels(batch),
            alpha=config.alpha,
            beta=config.beta,
            temperature=config.temperature,
        )
        return {"dkd": config.dkd_weight * self._ramp() * loss}

    def _ramp(self) -> Tensor | float:
        """How much of its weight the term has by now."""
        if not self.config.ramp_steps:
            return 1.0
        if self.training:
            self.steps += 1
        return (self.steps / self.config.ramp_steps).clamp(max=1)
