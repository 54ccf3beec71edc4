"""Which classes a model knows, and which it takes for one another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["ClassChange", "confusion_counts", "most_changed_classes", "per_class_accuracy"]


def per_class_accuracy(
    chosen: Int[Tensor, " images"], labels: Int[Tensor, " images"], num_classes: int
) -> tuple[float | None, ...]:
    """How many images of each class are classified rightly.

    Args:
        chosen: Class that the model chooses for each image.
        labels: Class that it has.
        num_classes: Number of classes.

    Returns:
        Percent for each class; None for one without images.

    Example:
        >>> import torch
        >>> per_class_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
        (50.0, 100.0, None)
    """
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    right = torch.bincount(labels[chosen == labels], minlength=num_classes).tolist()
    return tuple(
        100 * good / count if count else None for good, count in zip(right, counts, strict=True)
    )


def confusion_counts(
    chosen: Int[Tensor, " images"], labels: Int[Tensor, " images"]
) -> Int[Tensor, "pairs 3"]:
    """Count which class is taken for which.

    Args:
        chosen: Class that the model chooses for each image.
        labels: Class that it has.

    Returns:
        Rows of (label, chosen class, count), the largest count first and equal ones in the order of
        the classes; only pairs that occur.

    Example:
        >>> import torch
        >>> confusion_counts(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0])).tolist()
        [[0, 1, 2], [0, 0, 1]]
    """
    pairs, counts = torch.stack([labels, chosen], dim=1).unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return torch.cat([pairs, counts[:, None]], dim=1)[order]


@dataclass(frozen=True)
class ClassChange:
    """What became of a class.

    Attributes:
        index: Of the class.
        before: Percent of its images that one model classifies rightly.
        after: Percent that the other does.
    """

    index: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """Points gained; below 0 where some are lost."""
        return self.after - self.before


def most_changed_classes(
    before: Sequence[float | None], after: Sequence[float | None], *, limit: int = 10
) -> tuple[ClassChange, ...]:
    """Find the classes in which two models differ most, such as a control and a distilled student.

    Args:
        before: Accuracy of one model in each class, as of `per_class_accuracy`.
        after: That of the other.
        limit: Classes to return, at most.

    Returns:
        The largest changes first, up or down; classes without images, or without change, are left
        out.

    Raises:
        ValueError: If they do not have equally many classes.

    Example:
        >>> [found.index for found in most_changed_classes([50, 90, None], [60, 70, None])]
        [1, 0]
    """
    if len(before) != len(after):
        raise ValueError(f"both need the same classes, got {len(before)} and {len(after)}")
    pairs = zip(before, after, strict=True)
    changes = [
        ClassChange(index, one, other)
        for index, (one, other) in enumerate(pairs)
        if one is not None and other is not None and one != other
    ]
    return tuple(sorted(changes, key=lambda found: -abs(found.change))[:limit])
