"""Checks, casts and directions that the losses share."""

import torch
from jaxtyping import Float
from torch import Tensor


def require_positive(**values: float) -> None:
    """Refuse a value that is not above zero, naming it."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Raise half precision to float32; float64 stays, so that tests can be exact."""
    return tuple(x if x.element_size() >= 4 else x.float() for x in tensors)


def unit_vectors(vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """Divide by the length. A vector of length 0 stays and gets no gradient, not one of 1e12."""
    length = vectors.norm(dim=1, keepdim=True)
    # Not `> 0`: what is no number has to be seen in the loss.
    return torch.where(length != 0, vectors / length.where(length != 0, 1), 0)
