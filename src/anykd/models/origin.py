"""How a model came to be."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ModelOrigin"]


@dataclass(frozen=True)
class ModelOrigin:
    """What makes a model again.

    Attributes:
        name: As `create_staged` takes it.
        options: Of the model's own constructor.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
