"""DIST: match how the teacher ranks, not its exact probabilities."""

from typing import Annotated, final

from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from anykd.distributed import gather_batch
from anykd.losses import dist_loss
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["DIST"]


@final
class DIST(Method):
    """Correlate with the teacher's probabilities, over classes and over samples.

    loss = cross-entropy + dist_loss(student, teacher)

    Source:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
        arXiv:2205.10536.

    Departure: under several ranks the samples of the whole batch are correlated, not each rank's.
    """

    class Config(MethodConfig):
        """Hyper-parameters of DIST."""

        inter_weight: Annotated[NonNegativeFloat, Paper("1 in OFA-KD's tables")] = 1.0
        """Factor on the correlation of the classes within a sample."""
        intra_weight: Annotated[NonNegativeFloat, Paper("1 in OFA-KD's tables")] = 1.0
        """Factor on the correlation of the samples within a class; it needs two samples."""
        temperature: Annotated[PositiveFloat, Paper("1 in OFA-KD's tables")] = 1.0
        """Divides the scores."""

        @model_validator(mode="after")
        def _something_is_correlated(self) -> "DIST.Config":
            if not self.inter_weight and not self.intra_weight:
                raise ValueError("inter_weight and intra_weight are both 0: use the method control")
            return self

        @property
        def sensible_batch(self) -> int:
            """The images of a class are correlated."""
            return 16 if self.intra_weight else 1

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The class scores."""
            return frozenset(("logits",))

    config: Config

    def joins(self) -> tuple[Join, ...]:
        """The class scores."""
        over = [
            name
            for name, weight in (
                ("classes", self.config.inter_weight),
                ("images", self.config.intra_weight),
            )
            if weight
        ]
        return (self.join("logits", f"correlation over {' and '.join(over)}"),)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute how far the correlations are from 1."""
        config = self.config
        own, other = student.logits, teacher.logits
        if config.intra_weight:
            own, other = self.whole_batch(own), gather_batch(other)
        loss = dist_loss(
            own,
            other,
            temperature=config.temperature,
            inter_weight=config.inter_weight,
            intra_weight=config.intra_weight,
        )
        return {"dist": loss}
