"""Keep no activations inside blocks: the backward pass computes them again."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from anykd.errors import ModelError

from .blocks import find_blocks
from .staged import StagedModel
from .traced import TracedBackbone

__all__ = ["recompute_blocks"]


def recompute_blocks(staged: StagedModel) -> None:
    """Let a model compute its blocks again in the backward pass, in place.

    In training it then keeps what goes into each block alone. Results, gradients, torch's random
    numbers and running statistics are what they were, and so are the names in the state dict.

    Args:
        staged: A model of any source.

    Raises:
        ModelError: If it has no blocks.

    Source:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
    """
    if isinstance(staged.model, TracedBackbone):
        staged.model.run_piece = _run_again
        return
    blocks = find_blocks(staged)
    if not blocks:
        raise ModelError(
            f"{staged.name} has no blocks that could be computed again",
            hint="set train.grad_checkpointing = false; train.grad_accum saves memory, too",
        )
    for block in blocks:
        # A bound method: a copy of the block, such as an average of weights, gets its own.
        block.forward = MethodType(_forward, block)


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _run_again([block], partial(type(block).forward, block), *args, **kwargs)


def _run_again(
    modules: Sequence[nn.Module], function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Call a function that runs some modules; where they train, the backward pass does so, too."""
    if not (torch.is_grad_enabled() and any(module.training for module in modules)):
        return function(*args, **kwargs)

    if torch.compiler.is_compiling():  # what changes buffers is compiled into the first pass alone
        return checkpoint(function, *args, use_reentrant=False, **kwargs)

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _SecondTime(modules)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)


class _SecondTime:
    """Modules as they were when it was made, whose buffers stay as they are.

    Running statistics count a batch once; whether they count it at all is as it was.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.parts = [part for module in modules for part in module.modules()]
        self.tracked = [getattr(part, _TRACKS, None) for part in self.parts]
        self.before: list[tuple[nn.Module, dict[str, Any], Any]] = []

    def __enter__(self) -> None:
        for part, tracked in zip(self.parts, self.tracked, strict=True):
            if part._buffers:
                self.before.append((part, part._buffers, getattr(part, _TRACKS, None)))
                part._buffers = {
                    name: None if buffer is None else buffer.clone()
                    for name, buffer in part._buffers.items()
                }
            if tracked is not None:
                setattr(part, _TRACKS, tracked)

    def __exit__(self, *error: object) -> None:
        for part, buffers, tracked in self.before:
            part._buffers = buffers
            if tracked is not None:
                setattr(part, _TRACKS, tracked)
        self.before = []


_TRACKS = "track_running_stats"
