"""Whether two models say the same of the same images."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .per_class import per_class_accuracy

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True)
class Agreement:
    """How far a student says what its teacher says.

    Attributes:
        top1: Percent of images for which both choose the same class.
        kl: Mean over images of KL(teacher || student), in nats; 0 where they say the same.
        per_class: For each class the percent of the images for which the teacher chooses it that
            the student chooses it for too; None where the teacher never does.
    """

    top1: float
    kl: float
    per_class: tuple[float | None, ...]


def agreement(
    student_logits: Float[Tensor, "images classes"], teacher_logits: Float[Tensor, "images classes"]
) -> Agreement:
    """Compare what two models say of the same images.

    Args:
        student_logits: Unnormalised scores.
        teacher_logits: Unnormalised scores of the same images and classes.

    Raises:
        ValueError: If there is no image.

    Example:
        >>> import torch
        >>> student = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
        >>> found = agreement(student, student.flip(dims=[0]) * torch.tensor([[1.0], [-1.0]]))
        >>> found.top1, found.per_class
        (50.0, (100.0, 0.0))
    """
    if not len(student_logits):
        raise ValueError("there is no image to compare two models by")
    student = student_logits.double().log_softmax(dim=1)
    teacher = teacher_logits.double().log_softmax(dim=1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    chosen, taught = student.argmax(dim=1), teacher.argmax(dim=1)
    return Agreement(
        top1=100 * (chosen == taught).double().mean().item(),
        kl=kl.item(),
        per_class=per_class_accuracy(chosen, taught, student.shape[1]),
    )
