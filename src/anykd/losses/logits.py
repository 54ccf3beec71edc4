"""Losses between class scores."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ._checks import in_float32, require_positive

__all__ = ["kd_loss", "ofa_loss"]

_FORMS = ("code", "paper")


def kd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Kullback-Leibler divergence of the student's class distribution from the teacher's.

    With :math:`p = \mathrm{softmax}(z / T)`:

    .. math::
        T^2 \operatorname{mean}_b \sum_k p^t_{bk} (\log p^t_{bk} - \log p^s_{bk})

    Args:
        student_logits: Unnormalised scores.
        teacher_logits: Unnormalised scores of the same samples.
        temperature: Divides both scores; > 0. The factor T² keeps the gradient's size.

    Returns:
        Mean over the batch, in nats; at least 0, and 0 when both distributions are equal.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
        >>> round(kd_loss(student, teacher).item(), 4)  # 3/4 ln(3/2) + 1/4 ln(1/2)
        0.1308
    """
    require_positive(temperature=temperature)
    student_logits, teacher_logits = in_float32(student_logits, teacher_logits)
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none")
    return temperature**2 * divergence.sum(dim=1).mean()


def ofa_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Float[Tensor, "batch classes"] | Int[Tensor, " batch"],
    *,
    gamma: float = 1.0,
    temperature: float = 1.0,
    form: str = "code",
) -> Float[Tensor, ""]:
    r"""Cross-entropy to the teacher's distribution with the target class enhanced.

    With :math:`p = \mathrm{softmax}(z / T)` and :math:`c` the most probable class of the label:

    .. math::
        -\operatorname{mean}_b \sum_k w_{bk} \log p^s_{bk}, \qquad
        w_k = (p^t_k + 1_{k=c})^\gamma - 1_{k=c}

    so that the target class weighs :math:`(1 + p^t_c)^\gamma - 1` and any other
    :math:`(p^t_k)^\gamma`. γ = 1 is the cross-entropy to the teacher, with the gradient of KD; a
    larger γ leans further to the target, which helps where the teacher is weak. There is no T².

    Args:
        student_logits: Unnormalised scores.
        teacher_logits: Unnormalised scores of the same samples.
        labels: Class distributions, or class indices; only the most probable class counts.
        gamma: Strength of the enhancement; > 0, useful from 1.0 to 1.5.
        temperature: Divides both scores; > 0.
        form: ``"code"`` is the formula above, which made the paper's tables. ``"paper"`` is the
            one in its text: γ on the target class alone, and nothing subtracted, so the target
            weighs :math:`(1 + p^t_c)^\gamma` and any other class :math:`p^t_k`.

    Returns:
        Mean over the batch, in nats; at least 0.

    Raises:
        ValueError: If ``gamma`` or ``temperature`` is not positive, or ``form`` is unknown.

    Source:
        Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
        Distillation", NeurIPS 2023, arXiv:2310.19444, equation 6.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
        >>> label = torch.tensor([0])
        >>> round(ofa_loss(student, teacher, label, gamma=1.0).item(), 4)  # ln 2
        0.6931
        >>> round(ofa_loss(student, teacher, label, gamma=2.0).item(), 4)  # (33/16 + 1/16) ln 2
        1.4729
    """
    require_positive(gamma=gamma, temperature=temperature)
    if form not in _FORMS:
        raise ValueError(f"form must be one of {', '.join(_FORMS)}, got {form!r}")
    student_logits, teacher_logits = in_float32(student_logits, teacher_logits)
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    target = labels.argmax(dim=1) if labels.ndim == 2 else labels.long()
    # expm1 and log1p keep (1 + p)^γ - 1 exact where p is below float32's spacing at 1.
    enhanced = (gamma * log_teacher.exp().log1p()).expm1()
    if form == "code":
        others = (gamma * log_teacher).exp()
    else:
        enhanced, others = enhanced + 1, log_teacher.exp()
    is_target = F.one_hot(target, student_logits.shape[1]).bool()
    weights = enhanced.where(is_target, others)
    return -(weights * log_student).sum(dim=1).mean()
