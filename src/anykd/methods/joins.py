"""Where student and teacher meet: what a plan shows of a method."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Stage

__all__ = ["Join", "Place", "count_parameters", "shape_at"]

Place = Stage | Literal["stages", "pooled", "logits"]
"""A stage, all four together, the vector before the classifier, or the class scores."""


@dataclass(frozen=True)
class Join:
    """One place where student and teacher meet.

    Attributes:
        place: Of the student.
        how: What stands between the two, in a few words.
        student: Shape of what the student gives, without the batch; empty for all stages together.
        teacher: Shape of what it meets on the teacher's side.
        target: Where that is in the teacher.
        parameters: Numbers that are held for this join alone, beside both models.
        part: Which method and which teacher, where there are several.
    """

    place: Place
    how: str
    student: tuple[int, ...] = ()
    teacher: tuple[int, ...] = ()
    target: Place = "logits"
    parameters: int = 0
    part: str = ""

    def of_part(self, name: str) -> "Join":
        """The same join, as that of one method among several."""
        return replace(self, part=name)


def shape_at(model: StagedModel | FrozenTeacher, place: Place) -> tuple[int, ...]:
    """Shape of what a model gives at a place, without the batch."""
    match place:
        case "stages":
            return ()
        case "pooled":
            return (model.width,)
        case "logits":
            return (model.num_classes,)
        case _:
            return model.shapes[place - 1]


def count_parameters(parts: Iterable[nn.Module | nn.Parameter | None]) -> int:
    """Count the numbers in modules and parameters."""
    total = 0
    for part in parts:
        if isinstance(part, nn.Parameter):
            total += part.numel()
        elif part is not None:
            total += sum(parameter.numel() for parameter in part.parameters())
    return total
