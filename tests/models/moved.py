"""Weights that are not fresh: fresh ones hide mistakes."""

import torch
from torch import nn


@torch.no_grad()
def move_weights(module: nn.Module, seed: int = 7) -> None:
    """Move every weight and statistic off its first value.

    timm starts heads of Mixer at 0, ResMLP's affine norms at the identity and layer scales near 0:
    a part that is left out, or two classifiers that differ, would go unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith("attn_mask"):
            continue  # Swin's mask is a constant of its geometry
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.mul_(1 + 0.3 * noise.abs())
        else:
            tensor.add_(0.05 * noise)
