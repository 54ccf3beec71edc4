"""A teacher that nothing can train, save or switch to train mode by accident."""

import torch
from jaxtyping import Float
from torch import Tensor

from anykd.types import Features

from .staged import StagedModel

__all__ = ["FrozenTeacher"]


class FrozenTeacher:
    """A staged model that is frozen and in eval mode for good.

    Deliberately not an ``nn.Module``: a method that holds one does not register it, so the
    optimiser, DistributedDataParallel and ``state_dict`` never see the teacher. Moving a method
    does not move its teacher; use `to`.

    Args:
        model: The teacher; it is used, not copied.
    """

    def __init__(self, model: StagedModel) -> None:
        self._model = model.eval().requires_grad_(False)
        self.name = model.name
        self.image_size = model.image_size
        self.num_classes = model.num_classes
        self.width = model.width
        self.shapes = model.shapes
        self.kind = model.kind
        self.num_prefix_tokens = model.num_prefix_tokens

    @property
    def model(self) -> StagedModel:
        """The staged model itself, for reading."""
        return self._model

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "batch 3 height width_px"]) -> Features:
        """Run the teacher without a graph."""
        return self._model(images)

    def tail(
        self,
        stage3_map: Float[Tensor, "batch chan height width_px"],
        prefix: Float[Tensor, "batch tokens chan"] | None = None,
    ) -> Features:
        """Run stage 4 and the head, with gradients to the map and the prefix tokens."""
        return self._model.tail(stage3_map, prefix)

    def to(
        self, device: torch.device | str, *, memory_format: torch.memory_format | None = None
    ) -> "FrozenTeacher":
        """Move the teacher to a device, and its weights to a memory format."""
        self._model.to(device)
        if memory_format is not None:
            self._model.to(memory_format=memory_format)
        return self
