"""Losses that tell samples apart."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._checks import in_float32, require_positive, unit_vectors

__all__ = ["crd_loss", "info_nce_loss"]


def crd_loss(
    positive_scores: Float[Tensor, " batch"],
    negative_scores: Float[Tensor, "batch negatives"],
    *,
    num_samples: int,
    eps: float = 1e-7,
) -> Float[Tensor, ""]:
    r"""Tell the pair of one sample from pairs drawn by chance (noise-contrastive estimation).

    With m negatives per sample, each drawn with probability :math:`P_n = 1 / N`:

    .. math::
        \operatorname{mean}_b \left[
            -\log \frac{e^{s^+_b}}{e^{s^+_b} + m P_n + \epsilon}
            - \sum_{k=1}^m \log \frac{m P_n}{e^{s^-_{bk}} + m P_n + \epsilon} \right]

    Args:
        positive_scores: Log-density of each sample's own pair, :math:`u \cdot v / \tau - \log Z`.
        negative_scores: Log-densities of its pairs with other samples; m is their number.
        num_samples: N, the samples that negatives are drawn from; > 0.
        eps: ε, added to both denominators; at least 0.

    Returns:
        Mean over the batch of the sum over m + 1 pairs, in nats; at least 0. It falls as a
        positive score rises and as a negative score falls.

    Raises:
        ValueError: If ``num_samples`` is not positive, ``eps`` is negative, or there are no
            negatives.

    Source:
        Tian et al., "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699.

    Example:
        >>> import torch
        >>> positive, negative = torch.zeros(1), torch.zeros(1, 2)
        >>> round(crd_loss(positive, negative, num_samples=2, eps=0.0).item(), 4)  # 3 ln 2
        2.0794
    """
    require_positive(num_samples=num_samples)
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    num_negatives = negative_scores.shape[1]
    if not num_negatives:
        raise ValueError("crd_loss compares with negatives, got none for each sample")
    positive_scores, negative_scores = in_float32(positive_scores, negative_scores)
    noise = num_negatives / num_samples
    threshold = math.log(noise + eps)
    # log(e^s + e^threshold) is -logsigmoid(threshold - s) + threshold, finite for every s.
    positive = -F.logsigmoid(positive_scores - threshold)
    negative = -F.logsigmoid(threshold - negative_scores) + math.log1p(eps / noise)
    return (positive + negative.sum(dim=1)).mean()


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
        similarity = unit_vectors(student_vectors) @ unit_vectors(teacher_vectors).T
        positives = torch.arange(len(similarity), device=similarity.device)
        return F.cross_entropy(similarity / temperature, positives)
