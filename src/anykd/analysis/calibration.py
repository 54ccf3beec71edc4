"""Whether a classifier is right as often as it says."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["ReliabilityBin", "expected_calibration_error", "reliability_curve"]


@dataclass(frozen=True)
class ReliabilityBin:
    """Images of about equal confidence.

    Attributes:
        confidence: Mean probability of the chosen classes, in [0, 1]; None without images.
        accuracy: Share of the images that are classified rightly, in [0, 1]; None without images.
        count: Images.
    """

    confidence: float | None
    accuracy: float | None
    count: int


def reliability_curve(
    confidences: Float[Tensor, " images"], correct: Bool[Tensor, " images"], *, num_bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """Compare how sure a classifier was with how often it was right.

    Args:
        confidences: Probability of the class that was chosen for each image, in [0, 1].
        correct: Whether it is the label.
        num_bins: Intervals of equal width that [0, 1] is divided into. Each contains its upper end.

    Returns:
        One bin per interval, from low to high confidence.

    Raises:
        ValueError: If there is no bin.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.

    Example:
        >>> import torch
        >>> sure = torch.tensor([0.4, 0.8, 0.9])
        >>> reliability_curve(sure, torch.tensor([False, True, False]), num_bins=2)[1].accuracy
        0.5
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    inner = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)[1:-1]
    confidences = confidences.double().cpu()
    which = torch.bucketize(confidences, inner)
    counts = torch.bincount(which, minlength=num_bins).tolist()
    sums = torch.bincount(which, confidences, num_bins).tolist()
    right = torch.bincount(which, correct.double().cpu(), num_bins).tolist()
    return tuple(
        ReliabilityBin(sure / count, good / count, count)
        if count
        else ReliabilityBin(None, None, 0)
        for count, sure, good in zip(counts, sums, right, strict=True)
    )


def expected_calibration_error(
    confidences: Float[Tensor, " images"], correct: Bool[Tensor, " images"], *, num_bins: int = 15
) -> float:
    """How far confidence and accuracy lie apart, as the mean over images of their bins' distances.

    Args:
        confidences: As of `reliability_curve`.
        correct: As of `reliability_curve`.
        num_bins: As of `reliability_curve`.

    Returns:
        ECE in [0, 1]; 0 for a classifier that is right as often as it says.

    Raises:
        ValueError: If there is no image, or no bin.

    Source:
        Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015;
        with 15 bins as in Guo et al., arXiv:1706.04599.

    Example:
        >>> import torch
        >>> sure = torch.tensor([0.75, 0.75])
        >>> expected_calibration_error(sure, torch.tensor([True, False]))
        0.25
    """
    if not len(confidences):
        raise ValueError("there is no image to measure calibration by")
    total = 0.0
    for one in reliability_curve(confidences, correct, num_bins=num_bins):
        if one.confidence is not None and one.accuracy is not None:
            total += one.count * abs(one.confidence - one.accuracy)
    return total / len(confidences)
