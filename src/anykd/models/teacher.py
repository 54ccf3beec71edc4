"""A teacher that nothing can train, save or switch to train mode by accident."""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from anykd.errors import ModelError
from anykd.types import EVERYTHING, FeaturePart, Features

from .sharding import shard
from .staged import StagedModel
from .views import Views

__all__ = ["FrozenTeacher"]


class FrozenTeacher:
    """A staged model that is frozen and in eval mode for good.

    Deliberately not an ``nn.Module``: a method that holds one does not register it, so the
    optimiser, DistributedDataParallel and ``state_dict`` never see the teacher. Moving a method
    does not move its teacher; use `to`.

    With a class map its logits are those of the chosen classes alone, in their order. Their softmax
    is the teacher's distribution given that the image shows one of these classes: the shares of
    the others are left out, and what remains keeps its proportions. Stages and the pooled vector
    are as they were.

    Args:
        model: The teacher; it is used, not copied.
        classes: The class map: for each class of the data its index among the model's logits. None
            keeps all logits.

    Attributes:
        classes: The class map, or None.
        num_classes: Length of the logits, after the map.

    Raises:
        ModelError: If the map has no class, an index that the model does not have, or one twice.
    """

    def __init__(self, model: StagedModel, classes: Sequence[int] | None = None) -> None:
        self._model = model.eval().requires_grad_(False)
        self.name = model.name
        self.image_size = model.image_size
        self.classes = None if classes is None else tuple(classes)
        self._map: Tensor | None = None
        self._is_sharded = False
        self.num_classes = model.num_classes
        if self.classes is not None:
            _require_indices(self.classes, model)
            self._map = torch.tensor(self.classes, device=model.mean.device)
            self.num_classes = len(self.classes)
        self.width = model.width
        self.shapes = model.shapes
        self.kind = model.kind
        self.num_prefix_tokens = model.num_prefix_tokens

    @property
    def model(self) -> StagedModel:
        """The staged model itself, for reading."""
        return self._model

    @torch.no_grad()
    def __call__(
        self,
        images: Float[Tensor, "batch 3 height width_px"] | Views,
        parts: AbstractSet[FeaturePart] = EVERYTHING,
    ) -> Features:
        """Run the teacher without a graph, in inference mode.

        Args:
            images: RGB in [0, 1]; or the `Views` of them that several models share.
            parts: What will be read. Without ``stages`` there are none in the features, and their
                memory is free for the student's backward pass.
        """
        views = images if isinstance(images, Views) else Views(images)
        stages = "stages" in parts
        if not self._can_infer():
            features = self._mapped(self._model(views))
            return features if stages else replace(features, stages=(), prefixes=())
        self._model.look(views)  # outside inference mode: the student may have the same view
        with torch.inference_mode():
            features = self._mapped(self._model(views))
        # What inference mode made can be part of no graph; a copy of it can.
        return features.map(torch.clone, stages=stages)

    def _can_infer(self) -> bool:
        """Whether nothing stands against inference mode.

        What the compiler makes costs nothing per operation that it could save; sharded weights are
        put together by operations that it refuses; and what a model keeps for later, such as tables
        of positions, its tail could not read with gradients.
        """
        compiles = torch.compiler.is_compiling()
        return not (compiles or self._is_sharded or self._model.tail_is_found)

    def tail(
        self,
        stage3_map: Float[Tensor, "batch chan height width_px"],
        prefix: Float[Tensor, "batch tokens chan"] | None = None,
    ) -> Features:
        """Run stage 4 and the head, with gradients to the map and the prefix tokens."""
        return self._mapped(self._model.tail(stage3_map, prefix))

    def _mapped(self, features: Features) -> Features:
        if self._map is None:
            return features
        return replace(features, logits=features.logits[:, self._map])

    def to(
        self, device: torch.device | str, *, memory_format: torch.memory_format | None = None
    ) -> "FrozenTeacher":
        """Move the teacher to a device, and its weights to a memory format."""
        self._model.to(device)
        if self._map is not None:
            self._map = self._map.to(device)
        if memory_format is not None:
            self._model.to(memory_format=memory_format)
        return self

    def shard(self) -> None:
        """Leave each rank a part of the weights; see `anykd.models.sharding`. Move it before."""
        shard(self._model)
        self._is_sharded = True


def _require_indices(classes: tuple[int, ...], model: StagedModel) -> None:
    """Refuse a class map that does not choose distinct classes of a model."""
    if not classes:
        raise ModelError(f"the class map of {model.name} is empty: it must choose a class or more")
    outside = [index for index in classes if not 0 <= index < model.num_classes]
    if outside:
        raise ModelError(
            f"the class map of {model.name} asks for class {outside[0]}, but its classes are 0 to "
            f"{model.num_classes - 1}"
        )
    most, count = Counter(classes).most_common(1)[0]
    if count > 1:
        raise ModelError(f"the class map of {model.name} chooses class {most} more than once")
