"""The last layer of a model: from its pooled vector to its logits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LastLayer", "find_last_layer"]


@dataclass(frozen=True)
class LastLayer:
    """The layer behind the pooled vector, by its path: the model owns it.

    Attributes:
        path: Of the layer in the model.
        convolution: Whether it is a 1x1 convolution, as DPN and ResNetV2 have.
    """

    path: str
    convolution: bool

    def __call__(
        self, model: nn.Module, pooled: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch classes"]:
        """Score the classes from the pooled vector."""
        layer = model.get_submodule(self.path)
        return layer(pooled[:, :, None, None]).flatten(1) if self.convolution else layer(pooled)


def find_last_layer(
    model: nn.Module, pooled: Float[Tensor, "batch width"], logits: Float[Tensor, "batch classes"]
) -> LastLayer | None:
    """Find the layer that turns the pooled vector into the logits, and prove it on both.

    With it a forward pass pools once. Heads that are more than one layer on one vector, such as
    DeiT's two classifiers, have none; they are run a second time.

    Args:
        model: In eval mode.
        pooled: What its head gives before the classifier.
        logits: What its head gives.
    """
    for layer in _candidates(model, pooled.shape[1], logits.shape[1]):
        try:
            if torch.equal(layer(model, pooled), logits):
                return layer
        except Exception:
            continue  # a head that takes something else than vectors
    return None


def _candidates(model: nn.Module, width: int, num_classes: int) -> Iterator[LastLayer]:
    """What timm calls the classifier, then every linear layer of these widths, last first."""
    ask: Any = getattr(model, "get_classifier", None)
    named = None if ask is None else ask()
    modules = list(model.named_modules())
    yield from (LastLayer(path, False) for path, module in modules if module is named)
    for path, module in reversed(modules):
        widths = None
        if isinstance(module, nn.Linear):
            widths = module.in_features, module.out_features
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            widths = module.in_channels, module.out_channels
        if widths == (width, num_classes):
            yield LastLayer(path, isinstance(module, nn.Conv2d))
