"""Look at a model with a random image and leave no trace."""

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "probe_images"]


def probe_images(image_size: tuple[int, int], *, like: Tensor) -> Tensor:
    """Two random images in [0, 1], the same every time, without touching the global generator."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, *image_size, generator=generator).to(like)


class evaluating:  # noqa: N801 - used as a function
    """Put a module in eval mode for a while, and every part of it back as it was."""

    def __init__(self, module: nn.Module) -> None:
        self.modes = [(part, part.training) for part in module.modules()]
        self.module = module

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *error: object) -> None:
        for part, training in self.modes:
            part.training = training
