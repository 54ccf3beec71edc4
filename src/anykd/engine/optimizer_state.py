"""An optimiser's state as named tensors and plain values, whatever optimiser it is."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["pack_optimizer", "unpack_optimizer"]

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def pack_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """Divide an optimiser's state.

    Everything stands under the names of parameters: their order, and how they are grouped, depends
    on how the model is sharded.

    Args:
        optimizer: Any of torch's or timm's.
        module: Has its parameters.
        tensors: Takes in its tensors, under names that begin with ``optimizer.``.

    Returns:
        The rest, for JSON.
    """
    whole = optimizer.state_dict()
    names = _names(optimizer, module)
    state = {names[number]: own for number, own in whole["state"].items()}
    options = {
        names[number]: {key: own for key, own in group.items() if _can_change(own)}
        for group in whole["param_groups"]
        for number in group["params"]
    }
    return {
        "state": _pack(state, "optimizer.state", tensors),
        "options": _pack(options, "optimizer.options", tensors),
    }


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    packed: dict[str, Any],
    saved: Shapes,
    tensors: dict[str, Tensor],
) -> Callable[[], None]:
    """Make room for an optimiser's state that is yet to be read.

    Args:
        optimizer: New, of the same parameters.
        module: Has them.
        packed: What `pack_optimizer` returned.
        saved: Shape and type of the tensors that were saved.
        tensors: Takes in empty tensors of these. One of a parameter's own shape is sharded as the
            parameter is.

    Returns:
        What to call when they are filled: it gives the state to the optimiser.
    """
    parameters = dict(module.named_parameters())
    like = {f"optimizer.state.{name}.": parameter for name, parameter in parameters.items()}

    def room(name: str) -> Tensor:
        shape, dtype = saved[name]
        parameter = like.get(name[: name.rfind(".") + 1])
        if parameter is not None and tuple(parameter.shape) == shape:
            return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        return torch.empty(shape, dtype=dtype)

    state = _unpack(packed["state"], tensors, room)
    options = _unpack(packed["options"], tensors, room)

    def restore() -> None:
        names = _names(optimizer, module)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict(
            {
                "state": {
                    number: state[name] for number, name in enumerate(names) if name in state
                },
                "param_groups": [group | options[names[group["params"][0]]] for group in groups],
            }
        )

    return restore


def _names(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[str]:
    """Names of the parameters in the order in which the optimiser numbers them."""
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    return [known[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _can_change(option: Any) -> bool:
    """Whether an optimiser may count or adapt in it; the rest is as the recipe says.

    Switches are none of these: whether parameters are fused, say, follows from how they are
    sharded, and that may be another way now.
    """
    return isinstance(option, int | float | Tensor) and not isinstance(option, bool)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their names, and write down what JSON does not know."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[key, _pack(own, f"{name}.{key}", tensors)] for key, own in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(own, f"{name}.{i}", tensors) for i, own in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} of the optimiser is a {type(value).__name__}: it cannot be saved")


def _unpack(packed: Any, tensors: dict[str, Tensor], room: Callable[[str], Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        if content not in tensors:
            tensors[content] = room(content)
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(own, tensors, room) for key, own in content}
    values = [_unpack(own, tensors, room) for own in content]
    return values if kind == "list" else tuple(values)
