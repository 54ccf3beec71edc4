"""How a model that is not timm's becomes a student or a teacher."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Backbone", "Level"]

Level = Tensor | tuple[Tensor, Tensor | None]
"""A map (batch, chan, height, width), alone or with its prefix tokens (batch, tokens, chan)."""


@runtime_checkable
class Backbone(Protocol):
    """What anykd asks of an ``nn.Module`` that is no timm model: two methods, and a third for FBT.

    Optional members:

    - ``forward_tail(stage3_map, prefix=None) -> final`` runs the model from its third stage on;
      without it the tail is looked for by structure, and FBT cannot end in a model that has none.
    - ``pretrained_cfg``, a dict as timm's: ``input_size`` (3, height, width), ``mean``, ``std``,
      ``interpolation``, ``crop_pct``, ``label_names``, ``license``.
    - ``no_weight_decay()`` names parameters that are to be kept from weight decay.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Tiny(nn.Module):
        ...     def __init__(self, num_classes=10):
        ...         super().__init__()
        ...         widths = (3, 8, 16, 32, 64)
        ...         self.stages = nn.ModuleList(
        ...             nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())
        ...             for a, b in zip(widths, widths[1:])
        ...         )
        ...         self.classifier = nn.Linear(64, num_classes)
        ...
        ...     def forward_stages(self, x):
        ...         maps = []
        ...         for stage in self.stages:
        ...             maps.append(x := stage(x))
        ...         return maps, x
        ...
        ...     def forward_head(self, final, pre_logits=False):
        ...         pooled = final.mean(dim=(2, 3))
        ...         return pooled if pre_logits else self.classifier(pooled)
        ...
        ...     def forward(self, x):
        ...         return self.forward_head(self.forward_stages(x)[1])
        >>> from anykd.models import StagedModel
        >>> StagedModel(Tiny(), image_size=32).shapes
        ((8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2))
    """

    def forward_stages(self, x: Tensor) -> tuple[Sequence[Level], Any]:
        """Run the model up to its head.

        Args:
            x: Normalised images (batch, 3, height, width).

        Returns:
            Four or more levels of features, early to late; and the final feature, whatever
            ``forward_head`` takes. Of more than four levels the stages are chosen as for timm's.
        """
        ...

    def forward_head(self, final: Any, pre_logits: bool = False) -> Tensor:
        """Turn the final feature into logits (batch, classes).

        Args:
            final: As ``forward_stages`` gave it.
            pre_logits: Return the pooled vector (batch, width) before the classifier instead.
        """
        ...
