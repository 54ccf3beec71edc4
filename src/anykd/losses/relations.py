"""Losses between the relations of the samples of a batch.

Cosines and distances are computed in float64, which autocast leaves alone. Relations are small
differences of large vectors: two augmentations of one image, or vectors far from the origin, cost
float32 most of its digits and its range is too small for the squares. A batch has few relations
beside the work of the models.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._checks import in_float32, unit_vectors

__all__ = ["correlation_loss", "rkd_angle_loss", "rkd_distance_loss"]

_VARIANTS = ("consecutive", "matrix")
_KERNEL_GAMMA = 0.4
_BLOCK = 256**3  # numbers of a tensor at a time: 128 MiB in float64


def correlation_loss(
    student_vectors: Float[Tensor, "batch student_width"],
    teacher_vectors: Float[Tensor, "batch teacher_width"],
    *,
    variant: str = "consecutive",
) -> Float[Tensor, ""]:
    r"""Match how the samples of a batch correlate.

    ``variant="consecutive"`` compares the errors of neighbours in the batch, with
    :math:`d_i = f^s_i - f^t_i`; it depends on the order of the samples:

    .. math::
        \frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_j |d_{ij}| \, |d_{i+1,j}|

    ``variant="matrix"`` compares the correlation matrices, with unit vectors
    :math:`u = f / \lVert f \rVert` and γ = 0.4:

    .. math::
        \frac{1}{B^2} \sum_{ij} \left( k(u^s_i, u^s_j) - k(u^t_i, u^t_j) \right)^2, \qquad
        k(u, v) = e^{-2 \gamma} \sum_{p=0}^{2} \frac{(2 \gamma)^p}{p!} (u \cdot v)^p

    k is the Gaussian kernel :math:`\exp(-\gamma \lVert u - v \rVert^2)` of unit vectors, as a
    Taylor series of order 2.

    Args:
        student_vectors: Vectors as they are for ``"consecutive"``, normalised here for
            ``"matrix"``.
        teacher_vectors: Vectors of the same samples, treated in the same way. ``"consecutive"``
            needs them as wide as the student's, ``"matrix"`` does not.
        variant: ``"consecutive"``, the simplification that made the published tables, or
            ``"matrix"``, the paper's loss. Neither is weighted.

    Returns:
        Scalar, at least 0. ``"consecutive"`` has the squared unit of the vectors. It is 0 when
        student and teacher are equal, and also when, in every coordinate, of any two neighbours
        one is. ``"matrix"`` has no unit, is below 0.52 and is 0 when all cosines are equal; a
        vector of length 0 has cosine 0 with every vector and gets no gradient.

    Raises:
        ValueError: If ``variant`` is unknown, the batch has fewer than two samples, or the widths
            differ where they must not.

    Source:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019,
        arXiv:1904.01802: the kernel, its order and γ are the paper's.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
        >>> correlation_loss(student, teacher).item()  # 1·3 + 2·4
        11.0
        >>> student, teacher = torch.ones(2, 3), torch.eye(2)  # cosines 1 and 0
        >>> loss = correlation_loss(student, teacher, variant="matrix")
        >>> round(loss.item(), 4)  # 2/4 · e^-1.6 · (0.8 + 0.32)²
        0.1266
    """
    if variant not in _VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(_VARIANTS)}, got {variant!r}")
    _require_two_samples(student_vectors)
    student_vectors, teacher_vectors = in_float32(student_vectors, teacher_vectors)
    if variant == "matrix":
        difference = _kernel(student_vectors) - _kernel(teacher_vectors)
        return difference.square().mean().to(student_vectors.dtype)
    if student_vectors.shape != teacher_vectors.shape:
        raise ValueError(
            f"variant 'consecutive' subtracts vectors, got widths {student_vectors.shape[1]} and "
            f"{teacher_vectors.shape[1]}; project them to one width or use variant='matrix'"
        )
    error = (student_vectors - teacher_vectors).abs()
    return (error[:-1] * error[1:]).sum(dim=1).mean()


def rkd_distance_loss(
    student_vectors: Float[Tensor, "batch student_width"],
    teacher_vectors: Float[Tensor, "batch teacher_width"],
) -> Float[Tensor, ""]:
    r"""Match the distances between the samples of a batch, up to their scale.

    With :math:`\ell` the smooth L1 (Huber) loss of threshold 1:

    .. math::
        \frac{1}{B^2} \sum_{ij} \ell \left( \frac{d^s_{ij}}{\mu^s}, \frac{d^t_{ij}}{\mu^t} \right),
        \qquad d_{ij} = \lVert f_i - f_j \rVert

    and μ the mean of the distances that are positive, with the gradient through it.

    Args:
        student_vectors: Vectors of any scale and offset.
        teacher_vectors: Vectors of the same samples; any width.

    Returns:
        Scalar without a unit, at least 0; 0 when one side is the other rotated, moved and scaled,
        and for two samples that differ on both sides. Samples that coincide have distance 0, which
        does not count in μ and has no gradient.

    Raises:
        ValueError: If the batch has fewer than two samples.

    Source:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0], [1.0], [2.0]])  # distances 1, 1, 2, mean 4/3
        >>> teacher = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3, mean 2
        >>> round(rkd_distance_loss(student, teacher).item(), 4)  # 2/9 · 1/2 · 2 · (1/4)²
        0.0139
    """
    _require_two_samples(student_vectors)
    student_vectors, teacher_vectors = in_float32(student_vectors, teacher_vectors)
    student, teacher = _distances(student_vectors), _distances(teacher_vectors)
    student, teacher = student / _positive_mean(student), teacher / _positive_mean(teacher)
    return F.smooth_l1_loss(student, teacher).to(student_vectors.dtype)


def rkd_angle_loss(
    student_vectors: Float[Tensor, "batch student_width"],
    teacher_vectors: Float[Tensor, "batch teacher_width"],
) -> Float[Tensor, ""]:
    r"""Match the angles of all triangles that the samples of a batch form.

    With :math:`\ell` the smooth L1 (Huber) loss of threshold 1:

    .. math::
        \frac{1}{B^3} \sum_{ijk} \ell \left( \cos^s_{ijk}, \cos^t_{ijk} \right), \qquad
        \cos_{ijk} = \frac{f_i - f_j}{\lVert f_i - f_j \rVert} \cdot
                     \frac{f_k - f_j}{\lVert f_k - f_j \rVert}

    so that j is the corner of the angle. A batch of more than 256 samples is computed in blocks
    of corners, and again in the backward pass, so that its :math:`B^3` cosines are never in memory
    at once.

    Args:
        student_vectors: Vectors of any scale and offset.
        teacher_vectors: Vectors of the same samples; any width.

    Returns:
        Scalar without a unit in [0, 3/2]; 0 when one side is the other rotated, moved and scaled,
        and for two samples that differ on both sides, which form no triangle. The cosine is 0,
        without a gradient, where the corner coincides with one of the other samples.

    Raises:
        ValueError: If the batch has fewer than two samples.

    Source:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # 90°, 45°, 45°
        >>> teacher = torch.tensor([[0.0], [1.0], [2.0]])  # 0°, 180°, 0°
        >>> round(rkd_angle_loss(student, teacher).item(), 4)  # 7/2 / 27
        0.1296
    """
    _require_two_samples(student_vectors)
    student_vectors, teacher_vectors = in_float32(student_vectors, teacher_vectors)
    student, teacher = _distances(student_vectors), _distances(teacher_vectors)
    batch = len(student)
    # One block at a time is in memory, in the backward pass too; a single one needs no care.
    error = _angle_error if batch**3 <= _BLOCK else _recomputed_angle_error
    corners = max(1, _BLOCK // batch**2)
    errors = [
        error(student_rows, student, teacher_rows, teacher)
        for student_rows, teacher_rows in zip(
            student.split(corners), teacher.split(corners), strict=True
        )
    ]
    return (torch.stack(errors).sum() / batch**3).to(student_vectors.dtype)


def _require_two_samples(vectors: Float[Tensor, "batch width"]) -> None:
    """Refuse a batch without relations."""
    if len(vectors) < 2:
        raise ValueError(f"relations need at least two samples, got a batch of {len(vectors)}")


def _kernel(vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
    """Gaussian kernel of every two directions, as a Taylor series of order 2."""
    directions = unit_vectors(vectors.double())
    exponent = 2 * _KERNEL_GAMMA * directions @ directions.T
    return math.exp(-2 * _KERNEL_GAMMA) * (1 + exponent + exponent.square() / 2)


def _distances(vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
    """Distance of every two samples: 0, without a gradient, where they coincide."""
    vectors = vectors.double()
    # From differences, not from dot products, so that coinciding samples are exactly at 0.
    # Rows in blocks, because on a GPU the backward pass of cdist holds all differences.
    blocks = vectors.split(max(1, _BLOCK // vectors.numel()))
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(rows, vectors, compute_mode=mode) for rows in blocks])


def _positive_mean(distances: Float[Tensor, "batch batch"]) -> Float[Tensor, ""]:
    """Mean of the positive entries; 1 if there are none."""
    count = (distances > 0).sum()
    return torch.where(count > 0, distances.sum() / count.clamp(min=1), 1)


def _angle_error(
    student_rows: Float[Tensor, "corners batch"],
    student: Float[Tensor, "batch batch"],
    teacher_rows: Float[Tensor, "corners batch"],
    teacher: Float[Tensor, "batch batch"],
) -> Float[Tensor, ""]:
    """Sum of the errors of all angles at some corners, which are given by their distances."""
    student_angles, teacher_angles = _angles(student_rows, student), _angles(teacher_rows, teacher)
    return F.smooth_l1_loss(student_angles, teacher_angles, reduction="sum")


def _recomputed_angle_error(*distances: Tensor) -> Float[Tensor, ""]:
    """Compute the same and keep nothing for the backward pass."""
    return checkpoint(_angle_error, *distances, use_reentrant=False, preserve_rng_state=False)


def _angles(
    rows: Float[Tensor, "corners batch"], distances: Float[Tensor, "batch batch"]
) -> Float[Tensor, "corners batch batch"]:
    """Cosines by the law of cosines: unlike unit vectors, their cost does not grow with width."""
    inverse = torch.where(rows > 0, 1 / rows.where(rows > 0, 1), 0)
    squares = rows.square()
    products = squares[:, :, None] + squares[:, None, :] - distances.square()
    return products * inverse[:, :, None] * (inverse / 2)[:, None, :]
