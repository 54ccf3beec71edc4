"""A teacher whose answers come with the batch, where they were computed before."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from anykd.errors import ModelError
from anykd.types import EVERYTHING, FeaturePart, Features

from .staged import StagedModel
from .teacher import FrozenTeacher
from .views import Views

__all__ = ["StoredTeacher"]


@final
class StoredTeacher(FrozenTeacher):
    """A frozen teacher that does not run on images of which its answer is stored.

    On others, such as those of an evaluation, it runs as every `FrozenTeacher` does, and so does
    its `tail`. A method that reads what is not stored is refused when it is built.

    Args:
        model: The teacher; it is used, not copied.
        classes: The class map, as in `FrozenTeacher`. Stored scores are those of the map already.
        slot: Where in ``Batch.stored`` its answers stand.
        has_logits: Whether class scores are stored.
        has_pooled: Whether pooled vectors are stored.

    Attributes:
        slot: As given.
        holds: What is stored; never the stages.

    Raises:
        ModelError: If the class map does not fit.
    """

    def __init__(
        self,
        model: StagedModel,
        classes: Sequence[int] | None = None,
        *,
        slot: int,
        has_logits: bool,
        has_pooled: bool,
    ) -> None:
        super().__init__(model, classes)
        self.slot = slot
        parts: dict[FeaturePart, bool] = {"logits": has_logits, "pooled": has_pooled}
        self.holds: frozenset[FeaturePart] = frozenset(p for p, there in parts.items() if there)

    @torch.no_grad()
    def __call__(
        self,
        images: Float[Tensor, "batch 3 height width_px"] | Views,
        parts: AbstractSet[FeaturePart] = EVERYTHING,
    ) -> Features:
        """Give the stored answer to the images, or run the teacher where there is none.

        Args:
            images: RGB in [0, 1]; or the `Views` of them, which bring what is stored.
            parts: What will be read, where the teacher has to run.

        Returns:
            Of what is stored: no stages, and width 0 for a part that is not held.

        Raises:
            ModelError: If what is stored is not of this teacher's widths.
        """
        stored = images.stored if isinstance(images, Views) else ()
        own = stored[self.slot] if self.slot < len(stored) else None
        if own is None:
            return super().__call__(images, parts)
        assert isinstance(images, Views)
        like = images.images
        pooled = self._held("pooled", own.pooled, self.width, like)
        logits = self._held("logits", own.logits, self.num_classes, like)
        return Features((), (), pooled, logits)

    def _held(
        self, part: FeaturePart, given: Tensor | None, width: int, like: Tensor
    ) -> Float[Tensor, "batch width"]:
        """What a batch brings of a part that is held; nothing of another."""
        if part not in self.holds:
            return like.new_empty(len(like), 0, dtype=torch.float32)
        if given is None or given.shape != (len(like), width):
            shape = "nothing" if given is None else "x".join(map(str, given.shape))
            raise ModelError(
                f"the stored {part} of {self.name} are {shape} for {len(like)} images, not "
                f"{len(like)}x{width}"
            )
        return given
