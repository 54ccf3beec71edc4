"""The layers of a model that are compared: its stages, or all of its blocks."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anykd.errors import ModelError
from anykd.models import StagedModel
from anykd.models.blocks import find_blocks

from .collect import LAYERS, layers_of

__all__ = ["LayerKind", "ModelLayers"]

LayerKind = Literal["stages", "blocks"]


class ModelLayers:
    """A model as the layers that it is compared by.

    Args:
        model: The model; nothing of it changes.
        kind: ``stages``: the four stages, and the vector that the classifier reads. ``blocks``:
            what each of its repeated blocks gives, and that vector.

    Attributes:
        names: Of the layers, early to late.

    Raises:
        ModelError: If it has no blocks.
    """

    def __init__(self, model: StagedModel, kind: LayerKind) -> None:
        self.model = model
        self.names: tuple[str, ...] = LAYERS
        self._blocks: tuple[nn.Module, ...] = ()
        if kind == "blocks":
            self._blocks = find_blocks(model)
            if not self._blocks:
                raise ModelError(
                    f"{model.name} has no blocks that could be compared",
                    hint="compare its stages: --layers stages",
                )
            paths = {module: path for path, module in model.model.named_modules()}
            self.names = (*(paths[block] for block in self._blocks), "pooled")

    def __call__(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Run the model, and keep what the layers give."""
        if not self._blocks:
            return layers_of(self.model(images))
        given: dict[nn.Module, Tensor] = {}

        def keep(block: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                given[block] = _first_tensor(output)

            return hook

        handles = [block.register_forward_hook(keep(block)) for block in self._blocks]
        try:
            pooled = self.model(images).pooled
        finally:
            for handle in handles:
                handle.remove()
        return [*(given[block] for block in self._blocks), pooled]


def _first_tensor(output: Any) -> Tensor:
    """What a block gives; of several things the first, which is the features in every family."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output
