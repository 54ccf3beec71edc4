"""CC: correlate the samples of a batch as the teacher does."""

from typing import Annotated, Literal, final

from pydantic import NonNegativeFloat, PositiveInt
from torch import nn

from anykd.distributed import gather_batch
from anykd.losses import correlation_loss
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["CC"]


@final
class CC(Method):
    """Match how the samples of a batch relate to each other, after a linear map of each side.

    loss = cross-entropy + cc_weight · correlation_loss(embed(student), embed(teacher))

    Both maps are trained, the teacher's too.

    Source:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019,
        arXiv:1904.01802.

    Departure: the default ``variant`` is the simplification that the published tables used; the
    paper's own form is ``matrix``.
    """

    class Config(MethodConfig):
        """Hyper-parameters of CC."""

        cc_weight: Annotated[NonNegativeFloat, Paper("0.02")] = 0.02
        """Factor on the congruence."""
        variant: Annotated[
            Literal["consecutive", "matrix"], Paper('"consecutive" in published tables')
        ] = "consecutive"
        """Differences of neighbours in the batch, or the batch's correlation matrices."""
        embed_dim: Annotated[PositiveInt, Paper("128")] = 128
        """Width that both sides are mapped to."""

        @property
        def sensible_batch(self) -> int:
            """Relations of images are compared."""
            return 16

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The vectors."""
            return frozenset(("pooled",))

    config: Config

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Config) -> None:
        super().__init__(student, teacher, config)
        self.student_embed = nn.Linear(student.width, config.embed_dim)
        self.teacher_embed = nn.Linear(self.teacher.width, config.embed_dim)

    def joins(self) -> tuple[Join, ...]:
        """The embedded vectors."""
        how = f"both to {self.config.embed_dim} by linear maps; relations of images"
        return (self.join("pooled", how, self.student_embed, self.teacher_embed),)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the congruence of the whole batch."""
        own = self.student_embed(self.whole_batch(student.pooled))
        other = self.teacher_embed(gather_batch(teacher.pooled))
        loss = correlation_loss(own, other, variant=self.config.variant)
        return {"cc": self.config.cc_weight * loss}
