"""The student as a function of one tensor: what is exported."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from anykd.models import StagedModel

from .signature import Signature

__all__ = ["Program"]


class Program(nn.Module):
    """A classifier from the input that a signature describes to class scores.

    Args:
        student: It is copied, in float32 on the CPU.
        signature: Says what goes in.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, student: StagedModel, signature: Signature) -> None:
        super().__init__()
        model = copy.deepcopy(student.model).cpu().float()
        self.model = model.to(memory_format=torch.contiguous_format)
        self.is_timm, self.takes_bytes = student.is_timm, signature.takes_bytes
        for name, values in (("mean", signature.mean), ("std", signature.std)):
            channels = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, channels, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Score images as the signature has them."""
        if self.takes_bytes:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        if self.is_timm:
            return self.model(images)
        _, final = self.model.forward_stages(images)
        return self.model.forward_head(final)
