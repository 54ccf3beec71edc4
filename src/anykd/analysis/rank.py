"""How many directions features really use."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["effective_rank"]


def effective_rank(features: Float[Tensor, "samples width"], *, centred: bool = True) -> float:
    r"""Exponential of the entropy of the singular values, as shares of their sum.

    Args:
        features: One row per sample.
        centred: Whether the mean over samples is taken away first. Features behind a ReLU have a
            large one, which says nothing about how they tell samples apart.

    Returns:
        From 1, where all samples lie on one line, to the smaller side of the matrix, where all
        directions are used alike; 0 where nothing varies.

    Raises:
        ValueError: If there is no sample.

    Source:
        Roy & Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007.
        Departure: ``centred``; the paper takes the matrix as it is.

    Example:
        >>> import torch
        >>> round(effective_rank(torch.eye(5), centred=False), 4)
        5.0
    """
    if not len(features):
        raise ValueError("there is no sample to find the rank of features by")
    features = features.double()
    if centred:
        # Counted from the first sample, a constant column is exactly 0, not what rounding leaves.
        features = features - features[:1]
        features = features - features.mean(dim=0)
    values = torch.linalg.svdvals(features)
    if not values.any():
        return 0.0
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()
