"""Look at a model with a random image and leave no trace."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["AttentionSeen", "disturb", "evaluating", "first_module", "probe_images"]


def probe_images(image_size: tuple[int, int], *, like: Tensor, seed: int = 0) -> Tensor:
    """Two random images in [0, 1], the same every time, without touching the global generator."""
    generator = torch.Generator().manual_seed(seed)
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


@torch.no_grad()
def disturb(model: nn.Module, *, seed: int) -> None:
    """Move every weight and statistic away from values at which a module does nothing.

    Other buffers (rotary frequencies, index tables) stay: training does not change them either.
    """
    generator = torch.Generator().manual_seed(seed)
    buffers = [b for name, b in model.named_buffers() if "running_" in name]
    for tensor in [*model.parameters(), *buffers]:
        if not tensor.is_floating_point():
            continue
        noise = torch.rand(tensor.shape, generator=generator).to(tensor)
        tensor.mul_(1 + 0.2 * noise)
        # Vectors (scales, shifts, running statistics; all stay positive where they must) also move.
        if max(tensor.shape, default=1) == tensor.numel():
            tensor.add_(0.1 * noise)


class AttentionSeen(TorchFunctionMode):
    """Notices whether what runs under it multiplies features with features, as attention does.

    Convolutions and linear layers multiply features with weights; only attention, in whatever class
    it is written, forms matrix products of two features.

    Attributes:
        seen: Whether it did.
    """

    seen = False
    _PRODUCTS = (
        "matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum",
        "scaled_dot_product_attention", "multi_head_attention_forward",
    )  # fmt: skip

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in self._PRODUCTS:
            operands = [v for v in _flat(args) if isinstance(v, Tensor) and v.ndim >= 3]
            if len(operands) >= 2 and not any(map(_is_weight, operands)):
                self.seen = True
        return func(*args, **(kwargs or {}))


def _flat(values: Any) -> list[Any]:
    return [leaf for v in values for leaf in (v if isinstance(v, tuple | list) else (v,))]


def _is_weight(tensor: Tensor) -> bool:
    base = tensor if tensor._base is None else tensor._base
    return isinstance(base, nn.Parameter)


def first_module(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """Path of the first part of a model that is called while it runs; None where none is."""
    called: list[str] = []

    def note(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, given: called.append(path)

    parts = [(path, module) for path, module in model.named_modules() if path]
    handles = [module.register_forward_pre_hook(note(path)) for path, module in parts]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return called[0] if called else None
