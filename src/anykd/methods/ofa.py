"""OFA-KD: every stage of the student learns the teacher's class distribution."""

from typing import Annotated, Literal, final

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import nn

from anykd.losses import ofa_loss
from anykd.models import FrozenTeacher, StagedModel
from anykd.models.branches import MapBranch, TokenBranch, initialise
from anykd.types import Batch, FeaturePart, Features, Stage, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["OFA"]


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

        stages: Annotated[tuple[Stage, ...], Paper("[1, 2, 3, 4]")] = Field(
            default=(1, 2, 3, 4), max_length=4
        )
        """Stages with a branch, 1 (early) to 4 (late); none distils the logits alone."""
        gamma: Annotated[
            PositiveFloat | tuple[PositiveFloat, ...],
            Paper("1 on CIFAR-100; 1.5 for DeiT-T → ResNet18 on ImageNet"),
        ] = 1.0
        """Enhancement of the target class: one value, or one for each stage and then the logits.
        Useful from 1.0 to 1.5; a weaker teacher wants a larger one."""
        kd_weight: Annotated[NonNegativeFloat, Paper("1")] = 1.0
        """Factor on the logits' term."""
        branch_weight: Annotated[
            NonNegativeFloat,
            Paper("1; 0.1 in the runs of Swin-T → ResNet18 and of MobileNetV2 students"),
        ] = 1.0
        """Factor on the sum over the branches."""
        temperature: Annotated[PositiveFloat, Paper("1")] = 1.0
        """Divides the scores."""
        form: Annotated[Literal["code", "paper"], Paper('"code" in its tables')] = "code"
        """Which formula: the one that made the paper's tables, or the one in its text."""
        target_grid: Annotated[PositiveInt, Paper("7, at 224 pixels")] = 7
        """Token branches merge patches down to about this grid."""
        branch_design: Annotated[
            Literal["auto", "map", "token"], Paper("map for CNNs, token for ViT, Swin and MLP")
        ] = "auto"
        """Branches of convolutions or of transformer blocks; auto asks the student's stages."""

        @model_validator(mode="after")
        def _one_gamma_each(self) -> "OFA.Config":
            if len(set(self.stages)) != len(self.stages):
                raise ValueError(f"stages holds a stage twice: {list(self.stages)}")
            if not self.kd_weight and not (self.stages and self.branch_weight):
                raise ValueError("neither logits nor branches are taught: use the method control")
            if isinstance(self.gamma, tuple) and len(self.gamma) != len(self.stages) + 1:
                raise ValueError(
                    f"gamma needs {len(self.stages) + 1} values (one for each stage, then the "
                    f"logits), got {len(self.gamma)}"
                )
            return self

        @property
        def gammas(self) -> tuple[float, ...]:
            """γ of each stage and then of the logits."""
            if isinstance(self.gamma, tuple):
                return self.gamma
            return (self.gamma,) * (len(self.stages) + 1)

        @property
        def needs_labels(self) -> bool:
            """Only where γ enhances the target class: 1 is the cross-entropy to the teacher."""
            enhanced = self.form == "paper" or any(gamma != 1 for gamma in self.gammas)
            return enhanced or super().needs_labels

        @property
        def scores_student(self) -> bool:
            """Only the logits' own term does; branches read stages."""
            return self.kd_weight > 0

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The class scores, whatever learns them."""
            return frozenset(("logits",))

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
            num_prefix_tokens=student.num_prefix_tokens,
            class_token=student.has_class_token,
        )

    def joins(self) -> tuple[Join, ...]:
        """The branch of each stage, and the class scores."""
        stages = tuple(
            self.join(stage, branch.description, branch, target="logits")
            for stage, branch in zip(self.config.stages, self.branches, strict=True)
            if isinstance(branch, MapBranch | TokenBranch)
        )
        if not self.config.kd_weight:
            return stages
        return (*stages, self.join("logits", "target-enhanced divergence"))

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the logits' term and one term for each stage."""
        config = self.config
        labels = self.target_labels(batch, teacher)
        *stage_gammas, gamma = config.gammas
        options = {"temperature": config.temperature, "form": config.form}
        terms: Terms = {}
        if config.kd_weight:
            loss = ofa_loss(student.logits, teacher.logits, labels, gamma=gamma, **options)
            terms["ofa_logits"] = config.kd_weight * loss
        for stage, branch, own_gamma in zip(
            config.stages, self.branches, stage_gammas, strict=True
        ):
            scores = branch(student.stages[stage - 1], student.prefixes[stage - 1])
            loss = ofa_loss(scores, teacher.logits, labels, gamma=own_gamma, **options)
            terms[f"ofa_stage{stage}"] = config.branch_weight * loss
        return terms
