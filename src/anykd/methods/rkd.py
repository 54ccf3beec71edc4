"""RKD: keep the distances and angles between samples."""

from typing import Annotated, final

from pydantic import NonNegativeFloat, model_validator

from anykd.distributed import gather_batch
from anykd.losses import rkd_angle_loss, rkd_distance_loss
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["RKD"]


@final
class RKD(Method):
    """Match the distances between samples, and the angles between triples of them.

    loss = cross-entropy + distance_weight · rkd_distance_loss + angle_weight · rkd_angle_loss

    The angles of a batch of B images are B³ numbers.

    Source:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.
    """

    class Config(MethodConfig):
        """Hyper-parameters of RKD."""

        distance_weight: Annotated[NonNegativeFloat, Paper("25")] = 25.0
        """Factor on the distances."""
        angle_weight: Annotated[NonNegativeFloat, Paper("50")] = 50.0
        """Factor on the angles; 0 spares their cost."""

        @model_validator(mode="after")
        def _something_is_kept(self) -> "RKD.Config":
            if not self.distance_weight and not self.angle_weight:
                raise ValueError(
                    "distance_weight and angle_weight are both 0: use the method control"
                )
            return self

        @property
        def sensible_batch(self) -> int:
            """Distances and angles between images are compared."""
            return 16

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The vectors."""
            return frozenset(("pooled",))

    config: Config

    def joins(self) -> tuple[Join, ...]:
        """The vectors."""
        relations = [
            name
            for name, weight in (
                ("distances", self.config.distance_weight),
                ("angles", self.config.angle_weight),
            )
            if weight
        ]
        return (self.join("pooled", f"{' and '.join(relations)} between images"),)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compare the relations within the whole batch."""
        own, other = self.whole_batch(student.pooled), gather_batch(teacher.pooled)
        terms: Terms = {}
        if self.config.distance_weight:
            terms["rkd_distance"] = self.config.distance_weight * rkd_distance_loss(own, other)
        if self.config.angle_weight:
            terms["rkd_angle"] = self.config.angle_weight * rkd_angle_loss(own, other)
        return terms
