"""Losses between features: maps, tokens or pooled vectors."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._checks import in_float32

__all__ = ["hint_loss", "pyramid_loss", "rsd_loss"]

_EPSILON = 1e-5


def hint_loss(
    student_features: Float[Tensor, "*shape"], teacher_features: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    r"""Mean squared difference of two features.

    .. math::
        \operatorname{mean}_i (f^s_i - f^t_i)^2

    Args:
        student_features: Maps, tokens or vectors, brought to the teacher's shape by a projector.
        teacher_features: Those of the same samples.

    Returns:
        Mean over all elements, in squared activation; at least 0, and 0 when both are equal.

    Raises:
        ValueError: If the shapes differ; nothing is broadcast.

    Source:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
        Departure: the mean, where equation 3 has half the sum, so that one weight serves stages
        of every size.

    Example:
        >>> import torch
        >>> hint_loss(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]])).item()  # (9 + 1) / 2
        5.0
    """
    _require_same_shape(student_features, teacher_features)
    student_features, teacher_features = in_float32(student_features, teacher_features)
    return F.mse_loss(student_features, teacher_features)


def pyramid_loss(
    student_maps: Float[Tensor, "batch chan height width"],
    teacher_maps: Float[Tensor, "batch chan height width"],
    *,
    grids: Sequence[int] = (4, 2, 1),
) -> Float[Tensor, ""]:
    r"""Mean squared difference of two maps, seen in full and ever more coarsely.

    With :math:`P_0` the identity and :math:`P_l` the average over the cells of the l-th grid:

    .. math::
        \frac{\sum_l 2^{-l} \operatorname{mean}_i (P_l f^s - P_l f^t)_i^2}{\sum_l 2^{-l}}

    Args:
        student_maps: Maps brought to the teacher's shape by a projector.
        teacher_maps: Those of the same samples.
        grids: Cells per side of the coarser views, from fine to coarse. One that is not coarser
            than the map is left out, and takes no weight.

    Returns:
        Weighted mean over the views, in squared activation; at least 0, and 0 when both are equal.

    Raises:
        ValueError: If the shapes differ, or the grids are not positive and falling.

    Source:
        Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044:
        the hierarchical context loss.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]])
        >>> round(pyramid_loss(student, teacher).item(), 4)  # (5 + 1/2 · 4) / (1 + 1/2)
        4.6667
    """
    _require_same_shape(student_maps, teacher_maps)
    if min(grids, default=1) < 1 or any(a <= b for a, b in itertools.pairwise(grids)):
        raise ValueError(f"grids must be positive and fall, got {list(grids)}")
    student_maps, teacher_maps = in_float32(student_maps, teacher_maps)
    height, width = student_maps.shape[-2:]
    total, weights, weight = F.mse_loss(student_maps, teacher_maps), 1.0, 1.0
    # Pooling is linear: the pooled difference is the difference of the pooled maps.
    difference = student_maps - teacher_maps
    for grid in grids:
        if grid >= max(height, width):
            continue
        weight /= 2
        cells = (min(grid, height), min(grid, width))
        total = total + weight * F.adaptive_avg_pool2d(difference, cells).square().mean()
        weights += weight
    return total / weights


def rsd_loss(
    student_vectors: Float[Tensor, "batch width"],
    teacher_vectors: Float[Tensor, "batch width"],
    *,
    off_diagonal_weight: float = 0.01,
) -> Float[Tensor, ""]:
    r"""Correlate each feature with the same one of the teacher, and with no other.

    With :math:`u = (f - \operatorname{mean} f) / (\operatorname{std} f + 10^{-5})` over the batch
    and :math:`M = (u^t)^\top u^s / B`, the matrix of correlations:

    .. math::
        \sum_i (M_{ii} - 1)^2 + \kappa \sum_{i \ne j} M_{ij}^2

    The first sum carries over what both models see, the second suppresses what is redundant.

    Args:
        student_vectors: One vector per sample, brought to the teacher's width by a projector.
        teacher_vectors: Those of the same samples.
        off_diagonal_weight: κ; at least 0.

    Returns:
        Sum over the features, so that it grows with the width D: from 0, when both are equal and
        uncorrelated among themselves, to 4 D + κ D (D - 1). A feature that is the same for all
        samples correlates with none: it counts as 0 and gets no gradient.

    Raises:
        ValueError: If the shapes differ, ``off_diagonal_weight`` is negative, or the batch has
            fewer than two samples.

    Source:
        Zhang et al., "Cross-Architecture Distillation Made Simple with Redundancy Suppression",
        ICCV 2025, arXiv:2507.21844.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
        >>> student, swapped = torch.stack([a, b], dim=1), torch.stack([b, a], dim=1)
        >>> round(rsd_loss(student, student).item(), 4)
        0.0
        >>> round(rsd_loss(student, swapped).item(), 4)  # 1 + 1 + 0.01 (1 + 1)
        2.02
    """
    _require_same_shape(student_vectors, teacher_vectors)
    if not off_diagonal_weight >= 0:
        raise ValueError(f"off_diagonal_weight must be at least 0, got {off_diagonal_weight}")
    batch, width = student_vectors.shape
    if batch < 2:
        raise ValueError(
            f"rsd_loss correlates features over a batch, got a batch of {batch}; use a larger batch"
        )
    student_vectors, teacher_vectors = in_float32(student_vectors, teacher_vectors)
    # Autocast would multiply in half precision and take correlations of 0.998 for 1.
    with torch.autocast(student_vectors.device.type, enabled=False):
        correlations = _standardise(teacher_vectors).T @ _standardise(student_vectors) / batch
    is_diagonal = torch.eye(width, dtype=torch.bool, device=correlations.device)
    redundancy = correlations.masked_fill(is_diagonal, 0).square().sum()
    return (correlations.diagonal() - 1).square().sum() + off_diagonal_weight * redundancy


def _require_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse two tensors of different shape, naming both shapes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {tuple(student.shape)} "
            f"and {tuple(teacher.shape)}"
        )


def _standardise(vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """Bring each column to mean 0 and deviation 1. A constant column becomes 0, without gradient.

    Its gradient by the formula would be 1e5 times that of another, beyond float16.
    """
    # Counted from the first sample, a constant column is exactly 0: the rounded mean of large
    # equal numbers is not their value, and the difference would be taken for a deviation.
    vectors = vectors - vectors[:1].detach()
    centred = vectors - vectors.mean(dim=0)
    variance = centred.square().mean(dim=0)
    varies = variance != 0  # NaN passes, to be seen in the loss
    # The root has an infinite gradient at 0, which the last line could not undo.
    deviation = variance.where(varies, 1).sqrt()
    return (centred / (deviation + _EPSILON)).where(varies, 0)
