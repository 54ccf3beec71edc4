"""What a source of models is asked for, and what they all say alike."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ModelRequest", "pixels"]


@dataclass(frozen=True)
class ModelRequest:
    """A model by its name within a source.

    Attributes:
        name: Without the source's prefix.
        num_classes: Length of the logits; None keeps the model's own, 0 leaves out the classifier.
        image_size: (height, width) in pixels; None takes the model's own.
        pretrained: Whether with the weights that belong to the name.
        options: Of the model's own constructor.
    """

    name: str
    num_classes: int | None = None
    image_size: tuple[int, int] | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def pixels(size: tuple[int, int] | None) -> str:
    """An image size in words.

    Example:
        >>> pixels((64, 64)), pixels((64, 96)), pixels(None)
        ('64 px', '64 x 96 px', 'its own image size')
    """
    if size is None:
        return "its own image size"
    return f"{size[0]} px" if size[0] == size[1] else f"{size[0]} x {size[1]} px"
