"""Images for which student and teacher choose different classes."""

from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from anykd.data import Reader

__all__ = ["choose_examples", "write_examples"]

_SIDE = 96
"""Pixels of the longer side of a kept image, at most."""


def choose_examples(
    student: Float[Tensor, "images classes"],
    teacher: Float[Tensor, "images classes"],
    labels: Int[Tensor, " images"] | None,
    positions: list[int],
    *,
    limit: int,
) -> list[dict[str, Any]]:
    """Choose images on which the two are surest of different classes, spread over the classes.

    Args:
        student: Its class scores.
        teacher: Those of the teacher.
        labels: Of the images; without any the teacher's choice stands for the class of an image.
        positions: Of the images in their reader.
        limit: Images to choose, at most.
    """
    sure, chosen = student.softmax(dim=1).max(dim=1)
    sure_teacher, taught = teacher.softmax(dim=1).max(dim=1)
    classes = (taught if labels is None else labels).tolist()
    both = (sure + sure_teacher).tolist()
    apart = (chosen != taught).nonzero()[:, 0].tolist()
    # The n-th surest image of each class stands before the n+1-th of any.
    seen: dict[int, int] = {}
    ranked = []
    for row in sorted(apart, key=lambda row: -both[row]):
        turn = seen[classes[row]] = seen.get(classes[row], -1) + 1
        ranked.append((turn, classes[row], row))
    return [
        {
            "file": f"examples/{number:03}.png",
            "index": positions[row],
            "label": None if labels is None else classes[row],
            "student": int(chosen[row]),
            "student_confidence": round(float(sure[row]), 4),
            "teacher": int(taught[row]),
            "teacher_confidence": round(float(sure_teacher[row]), 4),
        }
        for number, (_, _, row) in enumerate(sorted(ranked)[:limit])
    ]


def write_examples(folder: Path, examples: list[dict[str, Any]], reader: Reader) -> None:
    """Write the images, as small as they are shown.

    Args:
        folder: A new folder for them.
        examples: What `choose_examples` chose.
        reader: Where the images are.
    """
    folder.mkdir()
    for example in examples:
        image = reader[example["index"]].image.copy()
        image.thumbnail((_SIDE, _SIDE))
        image.save(folder / Path(example["file"]).name)
