"""Checks and casts that the losses share."""

from torch import Tensor


def require_positive(**values: float) -> None:
    """Refuse a value that is not above zero, naming it."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Raise half precision to float32; float64 stays, so that tests can be exact."""
    return tuple(x if x.element_size() >= 4 else x.float() for x in tensors)
