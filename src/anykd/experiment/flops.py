"""The arithmetic of one image."""

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.flop_counter import FlopCounterMode

from anykd.models import StagedModel, Views
from anykd.models.probe import evaluating, probe_images

__all__ = ["classify", "count_flops"]


def classify(model: StagedModel, image: Tensor) -> Tensor:
    """Run a model as whoever uses it by itself does: no stem twice, no stages kept."""
    if model.is_timm and model.new_classifier is None and not isinstance(model, FSDPModule):
        return model.model(model.look(Views(image)))
    return model(image).logits


def count_flops(model: StagedModel) -> int:
    """Count the operations of one image, forward; the model is left as it was.

    Returns:
        Twice the multiply-adds of matrix products and convolutions.
    """
    image = probe_images(model.image_size, like=model.mean)[:1]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), evaluating(model), counter:
        classify(model, image)
    return counter.get_total_flops()
