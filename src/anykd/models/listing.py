"""What models are like at an image size: their stages, and whether FBT can end in them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from anykd.errors import ModelError

from .zoo import create_staged

__all__ = ["ModelLine", "describe_model", "describe_models"]


@dataclass(frozen=True)
class ModelLine:
    """One model, built with random weights.

    Attributes:
        name: As it was asked for.
        parameters: Their number; 0 where it could not be built.
        kind: What mixes positions in it.
        shapes: (chan, height, width) of its four stages.
        has_tail: Whether FBT's fusion may end in it.
        refusal: Why it could not be built; empty where it could.
    """

    name: str
    parameters: int = 0
    kind: str = ""
    shapes: tuple[tuple[int, int, int], ...] = ()
    has_tail: bool = False
    refusal: str = ""

    def __str__(self) -> str:
        """One line for the terminal."""
        if self.refusal:
            return f"{self.name:44} {self.refusal}"
        stages = "  ".join(f"{c}@{h}" if h == w else f"{c}@{h}x{w}" for c, h, w in self.shapes)
        tail = "tail" if self.has_tail else "no tail"
        return f"{self.name:44} {self.parameters / 1e6:7.1f} M  {self.kind:9}  {tail:7}  {stages}"


def describe_model(
    name: str, image_size: int | tuple[int, int] | None, **options: Any
) -> ModelLine:
    """Build a model with random weights and say what it is like.

    Args:
        name: As `create_staged` takes it.
        image_size: Pixels; None takes the model's own.
        **options: Of `create_staged`, such as ``patch_size=4`` or ``stem="small"``.

    Raises:
        ModelError: If it cannot be built.
    """
    staged = create_staged(name, image_size=image_size, **options)
    count = sum(parameter.numel() for parameter in staged.parameters())
    return ModelLine(name, count, staged.kind, tuple(staged.shapes), staged.has_tail)


def describe_models(
    names: Iterable[str], image_size: int | tuple[int, int] | None, **options: Any
) -> Iterator[ModelLine]:
    """Build models one after another; those that cannot be built say why.

    Args:
        names: As `create_staged` takes them.
        image_size: Pixels; None takes each model's own.
        **options: Of `create_staged`.
    """
    for name in names:
        try:
            yield describe_model(name, image_size, **options)
        except ModelError as error:
            yield ModelLine(name, refusal=str(error))
