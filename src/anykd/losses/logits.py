"""Losses between class scores."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._checks import in_float32, require_positive

__all__ = ["dist_loss", "dkd_loss", "kd_loss", "ofa_loss"]

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
    return temperature**2 * _divergence(log_student, log_teacher)


def dkd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Float[Tensor, "batch classes"] | Int[Tensor, " batch"],
    *,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    r"""KD in two parts of free weight: how sure of the target, and what else it might be.

    With :math:`p = \mathrm{softmax}(z / T)`, :math:`c` the most probable class of the label,
    :math:`b = (p_c, 1 - p_c)` and :math:`q_k = p_k / (1 - p_c)` over the classes :math:`k \ne c`:

    .. math::
        T^2 \operatorname{mean}_b \left[ \alpha \, \mathrm{KL}(b^t \Vert b^s)
                 + \beta \, \mathrm{KL}(q^t \Vert q^s) \right]

    α = 1 and β = 1 - p^t_c is KD: there, the surer the teacher, the less the other classes count.

    Args:
        student_logits: Unnormalised scores of at least two classes.
        teacher_logits: Unnormalised scores of the same samples.
        labels: Class distributions, or class indices; only the most probable class counts.
        alpha: Weight of the target against all others; at least 0.
        beta: Weight of the others among themselves; at least 0. With two classes there is one
            other, and this part is 0.
        temperature: Divides both scores; > 0. The factor T² keeps the gradient's size.

    Returns:
        Mean over the batch, in nats; at least 0, and 0 when both distributions are equal.

    Raises:
        ValueError: If ``temperature`` is not positive, ``alpha`` or ``beta`` is negative, or
            there are fewer than two classes.

    Source:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679. On
        CIFAR-100 it takes β = 8 and T = 4, and ramps the loss up over 20 epochs.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 3.0, 1.0]]).log()
        >>> label = torch.tensor([0])
        >>> round(dkd_loss(student, teacher, label, beta=0.0).item(), 4)  # b both (1/3, 2/3)
        0.0
        >>> round(dkd_loss(student, teacher, label).item(), 4)  # 2 (3/4 ln(3/2) + 1/4 ln(1/2))
        0.2616
    """
    require_positive(temperature=temperature)
    _require_not_negative(alpha=alpha, beta=beta)
    num_classes = student_logits.shape[1]
    if num_classes < 2:
        raise ValueError(
            f"dkd_loss sets the target class against the others, got logits of {num_classes} class"
        )
    student_logits, teacher_logits = in_float32(student_logits, teacher_logits)
    is_target = _is_target(labels, num_classes)
    student_target, student_others = _decouple(student_logits / temperature, is_target)
    teacher_target, teacher_others = _decouple(teacher_logits / temperature, is_target)
    target_part = _divergence(student_target, teacher_target)
    others_part = _divergence(student_others, teacher_others)
    return temperature**2 * (alpha * target_part + beta * others_part)


def dist_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Match how the teacher ranks classes and samples, not its exact probabilities.

    With :math:`\rho` the Pearson correlation and :math:`p = \mathrm{softmax}(z / T)`:

    .. math::
        T^2 \left[ w_\text{inter} \left(1 - \operatorname{mean}_b \rho(p^s_b, p^t_b)\right)
                 + w_\text{intra} \left(1 - \operatorname{mean}_c \rho(p^s_{:c}, p^t_{:c})\right)
            \right]

    Args:
        student_logits: Unnormalised scores.
        teacher_logits: Unnormalised scores of the same samples.
        temperature: Divides both scores; > 0.
        inter_weight: Weight of the term that compares classes within a sample; at least 0.
        intra_weight: Weight of the term that compares samples within a class; at least 0. It
            needs at least two samples.

    Returns:
        Scalar in [0, 2 T² (inter_weight + intra_weight)]; 0 when both correlate perfectly. A row
        or column whose spread is within rounding has no correlation: it counts as 0 and gets no
        gradient. However small the probabilities of a column are, their spread counts in full.

    Raises:
        ValueError: If ``temperature`` is not positive, a weight is negative, or the batch has
            fewer than two samples while ``intra_weight`` is not 0.

    Source:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
        arXiv:2205.10536.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0, -1.0], [0.0, 2.0, 3.0]])
        >>> round(dist_loss(z, z).item(), 4)
        0.0
        >>> round(dist_loss(z, -z).item(), 4)
        3.8076
    """
    require_positive(temperature=temperature)
    _require_not_negative(inter_weight=inter_weight, intra_weight=intra_weight)
    if intra_weight and len(student_logits) < 2:
        raise ValueError(
            f"intra_weight compares samples of a batch, got a batch of {len(student_logits)}; "
            "use a larger batch or intra_weight=0"
        )
    student_logits, teacher_logits = in_float32(student_logits, teacher_logits)
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    inter = 1 - _correlation(log_student, log_teacher, dim=1).mean()
    intra = 1 - _correlation(log_student, log_teacher, dim=0).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


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
    # expm1 and log1p keep (1 + p)^γ - 1 exact where p is below float32's spacing at 1.
    enhanced = (gamma * log_teacher.exp().log1p()).expm1()
    if form == "code":
        others = (gamma * log_teacher).exp()
    else:
        enhanced, others = enhanced + 1, log_teacher.exp()
    is_target = _is_target(labels, student_logits.shape[1])
    weights = enhanced.where(is_target, others)
    return -(weights * log_student).sum(dim=1).mean()


def _require_not_negative(**values: float) -> None:
    """Refuse a value below zero, naming it."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def _is_target(
    labels: Float[Tensor, "batch classes"] | Int[Tensor, " batch"], num_classes: int
) -> Bool[Tensor, "batch classes"]:
    """Mark the most probable class of each label."""
    target = labels.argmax(dim=1) if labels.ndim == 2 else labels.long()
    # one_hot would ask for the smallest and the largest class, which waits for some devices.
    return torch.arange(num_classes, device=target.device) == target[:, None]


def _divergence(
    log_student: Float[Tensor, "batch events"], log_teacher: Float[Tensor, "batch events"]
) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence of the student from the teacher, mean over the batch."""
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none")
    return divergence.sum(dim=1).mean()


def _decouple(
    scores: Float[Tensor, "batch classes"], is_target: Bool[Tensor, "batch classes"]
) -> tuple[Float[Tensor, "batch 2"], Float[Tensor, "batch classes"]]:
    """Return log(p_c, 1 - p_c), and log q with 0 in the target's place."""
    # Counted from the largest other score, the logarithm below stays small and exact.
    top = scores.masked_fill(is_target, -math.inf).amax(dim=1, keepdim=True).detach()
    scores = scores - top
    others = scores.masked_fill(is_target, -math.inf).logsumexp(dim=1, keepdim=True)
    relative = scores - others
    # In the target's place stand the log-odds p_c / (1 - p_c): their sigmoid is p_c, and
    # 1 - p_c, which rounds to 0 for a sure model, is never formed.
    odds = relative.where(is_target, 0).sum(dim=1, keepdim=True)
    return F.logsigmoid(torch.cat([odds, -odds], dim=1)), relative.masked_fill(is_target, 0)


def _correlation(
    log_student: Float[Tensor, "batch classes"],
    log_teacher: Float[Tensor, "batch classes"],
    dim: int,
) -> Float[Tensor, " lines"]:
    """Pearson correlation of the probabilities along a dimension."""
    return (_deviation(log_student, dim) * _deviation(log_teacher, dim)).sum(dim=dim)


def _deviation(
    log_values: Float[Tensor, "batch classes"], dim: int
) -> Float[Tensor, "batch classes"]:
    """Deviation from the mean as a unit vector; 0 and without gradient where nothing deviates."""
    top = log_values.amax(dim=dim, keepdim=True).detach()
    # Correlation ignores scale, and p / max p does not underflow in a column of tiny probabilities.
    values = (log_values - top).exp()
    rounding = 4 * torch.finfo(values.dtype).eps * (1 + top.abs())
    is_flat = 1 - values.amin(dim=dim, keepdim=True) <= rounding
    centred = values - values.mean(dim=dim, keepdim=True)
    # The root has an infinite gradient at 0, which the last line could not undo.
    length = centred.square().sum(dim=dim, keepdim=True).masked_fill(is_flat, 1).sqrt()
    return (centred / length).masked_fill(is_flat, 0)
