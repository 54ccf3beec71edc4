"""Losses that tell samples apart."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._checks import in_float32, require_positive

__all__ = ["info_nce_loss"]


def info_nce_loss(
    student_vectors: Float[Tensor, "batch width"],
    teacher_vectors: Float[Tensor, "batch width"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    r"""Tell the teacher's vector of the same image from those of the other images.

    With unit vectors :math:`u = f / \lVert f \rVert`:

    .. math::
        -\operatorname{mean}_i \log
        \frac{\exp(u^s_i \cdot u^t_i / \tau)}{\sum_j \exp(u^s_i \cdot u^t_j / \tau)}

    One way: the student's vector is the query, the teacher's are the keys. Under several ranks
    give it the gathered batch, so that the negatives are those of the whole batch.

    Args:
        student_vectors: Vectors of any length; normalised here.
        teacher_vectors: Vectors of the same samples, of the same width; normalised here.
        temperature: τ; > 0. A scalar tensor may be trained.

    Returns:
        Mean over the batch, in nats; at least 0. It is 0 for a batch of one, which has no
        negatives. A vector of length 0 has similarity 0 with every other.

    Raises:
        ValueError: If ``temperature`` is a number and not positive.

    Source:
        van den Oord et al., "Representation Learning with Contrastive Predictive Coding",
        arXiv:1807.03748, equation 4.

    Example:
        >>> import torch
        >>> round(info_nce_loss(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)
        0.3133
    """
    if not isinstance(temperature, Tensor):
        require_positive(temperature=temperature)
    student_vectors, teacher_vectors = in_float32(student_vectors, teacher_vectors)
    # Autocast would multiply in half precision, and 1/τ up to 100 would enlarge the error.
    with torch.autocast(student_vectors.device.type, enabled=False):
        similarity = _unit(student_vectors) @ _unit(teacher_vectors).T
        positives = torch.arange(len(similarity), device=similarity.device)
        return F.cross_entropy(similarity / temperature, positives)


def _unit(vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """Divide by the length. A vector of length 0 stays and gets no gradient, not one of 1e12."""
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > 0, vectors / length.where(length > 0, 1), 0)
