"""FitNet: regress the teacher's feature maps."""

from typing import Annotated, final

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import nn

from anykd.losses import hint_loss, kd_loss
from anykd.models import FrozenTeacher, StagedModel
from anykd.models.align import MapAligner
from anykd.models.branches import initialise
from anykd.types import Batch, FeaturePart, Features, Stage, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["FitNet"]


@final
class FitNet(Method):
    """Regress the teacher's feature maps from the student's, stage by stage.

    loss = cross-entropy + kd_weight · kd_loss + hint_weight · Σ hint_loss(align(student), teacher)

    The tokens of a transformer or MLP are a map like any other; class tokens are left out. Where
    the grids differ, the aligner shrinks, grows or resamples the student's to the teacher's.

    Source:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550; for pairs
        of different families as in OFA-KD's tables (arXiv:2310.19444).

    Departures: one phase with all terms, where the paper trains up to the hint first; all four
    stages, where the paper has one.
    """

    class Config(MethodConfig):
        """Hyper-parameters of FitNet."""

        stages: Annotated[tuple[Stage, ...], Paper("[1, 2, 3, 4] in OFA-KD's tables")] = Field(
            default=(1, 2, 3, 4), min_length=1, max_length=4
        )
        """Stages that are regressed, 1 (early) to 4 (late)."""
        hint_weight: NonNegativeFloat = 1.0
        """Factor on the sum over the stages."""
        kd_weight: Annotated[
            NonNegativeFloat, Paper("most probably 1 in OFA-KD's tables, 0 in FitNet's paper")
        ] = 1.0
        """Factor on the divergence from the teacher's class distribution; 0 takes a teacher of any
        classes."""
        temperature: Annotated[PositiveFloat, Paper("1 in OFA-KD's tables")] = 1.0
        """Divides the scores in that divergence."""

        @model_validator(mode="after")
        def _each_stage_once(self) -> "FitNet.Config":
            if len(set(self.stages)) != len(self.stages):
                raise ValueError(f"stages holds a stage twice: {list(self.stages)}")
            return self

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The stages, and the class scores where the divergence is computed."""
            return frozenset(("stages", "logits") if self.kd_weight else ("stages",))

    config: Config

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Config) -> None:
        super().__init__(student, teacher, config)
        self.aligners = nn.ModuleList(
            MapAligner(student.shapes[stage - 1], self.teacher.shapes[stage - 1])
            for stage in config.stages
        )
        initialise(self.aligners)

    def joins(self) -> tuple[Join, ...]:
        """The aligner of each stage, and the class scores."""
        stages = tuple(
            self.join(stage, aligner.description, aligner)
            for stage, aligner in zip(self.config.stages, self.aligners, strict=True)
            if isinstance(aligner, MapAligner)
        )
        if not self.config.kd_weight:
            return stages
        return (*stages, self.join("logits", "divergence of the class scores"))

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the divergence and one hint for each stage."""
        config = self.config
        terms: Terms = {}
        if config.kd_weight:
            loss = kd_loss(student.logits, teacher.logits, temperature=config.temperature)
            terms["kd"] = config.kd_weight * loss
        for stage, aligner in zip(config.stages, self.aligners, strict=True):
            hint = hint_loss(aligner(student.stages[stage - 1]), teacher.stages[stage - 1])
            terms[f"hint_stage{stage}"] = config.hint_weight * hint
        return terms
