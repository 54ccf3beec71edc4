"""OFA-KD: every stage of the student learns the teacher's class distribution."""

from typing import Literal, final

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import nn

from anykd.losses import ofa_loss
from anykd.models import FrozenTeacher, StagedModel
from anykd.models.branches import MapBranch, TokenBranch, initialise
from anykd.types import Batch, StepOutput

from .base import Method, MethodConfig

__all__ = ["OFA"]

Stage = Literal[1, 2, 3, 4]


@final
class OFA(Method):
    """Project each stage of the student to class scores and match the teacher's there.

    loss = cross-entropy + kd_weight · ofa_loss(logits) + branch_weight · Σ ofa_loss(branch)

    In the space of class scores the families' different features do not matter. The branches exist
    in training only and see no labels but for the target class that the loss enhances.

    Source:
        Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
        Distillation", NeurIPS 2023, arXiv:2310.19444.
    """

    class Config(MethodConfig):
        """Hyper-parameters of OFA."""

        stages: tuple[Stage, ...] = Field(default=(1, 2, 3, 4), max_length=4)
        """Stages with a branch, 1 (early) to 4 (late); none distils the logits alone."""
        gamma: PositiveFloat | tuple[PositiveFloat, ...] = 1.0
        """Enhancement of the target class: one value, or one for each stage and then the logits.
        Useful from 1.0 to 1.5; a weaker teacher wants a larger one."""
        kd_weight: NonNegativeFloat = 1.0
        """Factor on the logits' term."""
        branch_weight: NonNegativeFloat = 1.0
        """Factor on the sum over the branches; 0.1 in the runs behind some of the CIFAR tables."""
        temperature: PositiveFloat = 1.0
        """Divides the scores."""
        form: Literal["code", "paper"] = "code"
        """Which formula: the one that made the paper's tables, or the one in its text."""
        target_grid: PositiveInt = 7
        """Token branches merge patches down to this grid; 7 at 224 pixels in the paper."""
        branch_design: Literal["auto", "map", "token"] = "auto"
        """Branches of convolutions or of transformer blocks; auto asks the student's stages."""

        @model_validator(mode="after")
        def _one_gamma_each(self) -> "OFA.Config":
            if len(set(self.stages)) != len(self.stages):
                raise ValueError(f"stages holds a stage twice: {list(self.stages)}")
            if isinstance(self.gamma, tuple) and len(self.gamma) != len(self.stages) + 1:
                raise ValueError(
                    f"gamma needs {len(self.stages) + 1} values (one for each stage, then the "
                    f"logits), got {len(self.gamma)}"
                )
            return self

    config: Config

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Config) -> None:
        super().__init__(student, teacher, config)
        self.branches = nn.ModuleList(self._branch(stage) for stage in config.stages)
        initialise(self.branches)

    def _branch(self, stage: Stage) -> nn.Module:
        student, design = self.student, self.config.branch_design
        if design == "auto":
            design = student.branch_design
        shape = student.shapes[stage - 1]
        if design == "map":
            width = max(student.width, self.teacher.width)
            return MapBranch(stage, shape[0], width=width, num_classes=student.num_classes)
        return TokenBranch(
            stage,
            shape,
            width=student.width,
            num_classes=student.num_classes,
            target_grid=self.config.target_grid,
        )

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the task term, the logits' term and one term for each stage."""
        config = self.config
        student = self.student(batch.images)
        target = self.teacher(batch.images).logits
        labels = self.labels(batch)
        *stage_gammas, gamma = (
            config.gamma
            if isinstance(config.gamma, tuple)
            else (config.gamma,) * (len(config.stages) + 1)
        )
        options = {"temperature": config.temperature, "form": config.form}
        terms = self.task_terms(student.logits, batch)
        loss = ofa_loss(student.logits, target, labels, gamma=gamma, **options)
        terms["ofa_logits"] = config.kd_weight * loss
        for stage, branch, own_gamma in zip(
            config.stages, self.branches, stage_gammas, strict=True
        ):
            scores = branch(student.stages[stage - 1], student.prefixes[stage - 1])
            loss = ofa_loss(scores, target, labels, gamma=own_gamma, **options)
            terms[f"ofa_stage{stage}"] = config.branch_weight * loss
        return StepOutput(student.logits, terms)
