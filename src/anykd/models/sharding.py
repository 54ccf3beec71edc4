"""A model whose weights lie in parts on the ranks, and are put together where they are used."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from anykd.distributed import world_size

from .blocks import find_blocks
from .staged import StagedModel

__all__ = ["filled", "gathered", "outline", "shard", "whole"]

M = TypeVar("M", bound=nn.Module)


def shard(module: nn.Module) -> None:
    """Leave each rank a part of every weight of a model, in place (FSDP2).

    The blocks of a `StagedModel` are put together one at a time, when they run; the rest of it,
    or all of another module, when it is called. Scalars stay on every rank. One process has it all.

    Args:
        module: On its device. Convolutions get the plain layout, which sharding needs.
    """
    if world_size() == 1:
        return
    module.to(memory_format=torch.contiguous_format)
    parameters = list(module.parameters())
    mesh = init_device_mesh(parameters[0].device.type, (world_size(),))
    scalars = {p for p in parameters if p.ndim == 0}
    blocks = find_blocks(module) if isinstance(module, StagedModel) else ()
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=scalars)
    # What is left is small, and a backward pass needs it soon after the forward pass.
    fully_shard(module, mesh=mesh, ignored_params=scalars, reshard_after_forward=False)
    if isinstance(module, StagedModel):
        register_fsdp_forward_method(module, "tail")
    # Maps with channels last come out as views, which nothing changes in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Put sharded models together for a while, to run them on ranks that do not go in step.

    Such as in an evaluation, where ranks may have different numbers of batches. All ranks enter and
    leave it together. ``state_dict`` of a model takes it apart again.

    Args:
        modules: Sharded or not; of those that are not, nothing changes.
    """
    parts = [part for module in modules for part in module.modules()]
    sharded = [part for part in parts if isinstance(part, FSDPModule)]
    roots = {module for module in modules if isinstance(module, FSDPModule)}
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.set_reshard_after_forward(part not in roots, recurse=False)
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each rank holds a part; another one as it is.

    All ranks call it together.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def outline(module: M) -> M:
    """Copy a model without its weights, before it is sharded, for `filled`; buffers are copied."""
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


def filled(outline: M, sharded: nn.Module) -> M:
    """Make the whole model again of its outline and the weights that lie on the ranks.

    All ranks call it together.

    Args:
        outline: What `outline` made of the model before it was sharded; it is changed.
        sharded: The model, or one that is built alike, such as its average.

    Returns:
        The outline, on the processor, with copies of all weights and buffers.
    """
    state = {
        name: whole(tensor).detach().to("cpu", copy=True)
        for name, tensor in sharded.state_dict().items()
    }
    cast(nn.Module, outline).load_state_dict(state, assign=True)
    return outline.to("cpu")
