"""How much memory a training step takes."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["Kept", "bytes_of", "kept_for_backward", "optimizer_bytes"]


@dataclass
class Kept:
    """What autograd keeps between forward and backward; weights are not counted.

    Attributes:
        bytes: Of all tensors, each storage once.
    """

    bytes: int = 0
    seen: set[int] = field(default_factory=set)


@contextlib.contextmanager
def kept_for_backward(module: nn.Module) -> Iterator[Kept]:
    """Count the bytes that forward passes leave for the backward pass.

    Args:
        module: Its parameters and buffers are there anyway and not counted.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(module)}
    kept = Kept()

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The graph holds what it keeps, so an address stays taken while it counts.
        address = storage.data_ptr()
        if address not in own and address not in kept.seen:
            kept.seen.add(address)
            kept.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield kept


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for module in modules for t in _tensors(module))


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of what an optimiser remembers, and of the gradients it reads."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    held = [tensor for tensor in [*states, *gradients] if isinstance(tensor, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
