"""The repeated blocks of a model: what is sharded, or computed again, one at a time."""

from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import nn

from .probe import evaluating, probe_images
from .staged import StagedModel

__all__ = ["find_blocks"]

_IsItem = Callable[[nn.Module, nn.Module], bool]


def find_blocks(staged: StagedModel) -> tuple[nn.Module, ...]:
    """Find the blocks that a model is a sequence of, whatever their class.

    A block has two layers or more and is an item of a list of modules; where lists hold little of
    the model, one of several modules of its class. What consists of blocks itself, as the stage of
    a pyramid does, is none. Only what a forward pass calls as a module counts: of a model that was
    traced nothing does, as its graph calls the layers.

    Args:
        staged: The model; nothing of it changes.

    Returns:
        Modules none of which is part of another; empty where a model has no such structure.
    """
    model = staged.model
    found = list(_blocks_in(model, lambda child, parent: isinstance(parent, _LISTS)))
    if 2 * sum(map(_size, found)) < _size(model):
        count = Counter(type(part) for part in model.modules())
        of_classes = list(_blocks_in(model, lambda child, parent: count[type(child)] > 1))
        found = max(found, of_classes, key=lambda blocks: sum(map(_size, blocks)))
    called = _called(staged, found)
    return tuple(block for block in found if block in called)


_LISTS = (nn.Sequential, nn.ModuleList)


def _blocks_in(module: nn.Module, is_item: _IsItem) -> Iterator[nn.Module]:
    for child in module.children():
        inner = list(_blocks_in(child, is_item))
        # A list inside a block, such as that of its convolutions, holds little of the block.
        consists_of_blocks = 2 * sum(map(_size, inner)) > _size(child)
        if is_item(child, module) and _num_layers(child) >= 2 and not consists_of_blocks:
            yield child
        else:
            yield from inner


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _num_layers(module: nn.Module) -> int:
    """Layers of matrices or kernels; norms and scales have vectors."""
    return sum(any(p.ndim > 1 for p in part.parameters(recurse=False)) for part in module.modules())


def _called(staged: StagedModel, modules: list[nn.Module]) -> set[nn.Module]:
    """Those of some modules that a forward pass calls."""
    called: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, given: called.add(module))
        for module in modules
    ]
    try:
        with torch.no_grad(), evaluating(staged):
            staged(probe_images(staged.image_size, like=staged.mean))
    finally:
        for handle in handles:
            handle.remove()
    return called
