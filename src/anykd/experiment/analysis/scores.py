"""How good one model's class scores are, in the words of ``analysis.json``."""

from dataclasses import asdict
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from anykd.analysis import expected_calibration_error, per_class_accuracy, reliability_curve

__all__ = ["calibration", "score"]


def score(
    logits: Float[Tensor, "images classes"] | None, labels: Int[Tensor, " images"] | None
) -> dict[str, Any]:
    """Score a model; every value is None where there are no class scores, or no labels.

    Args:
        logits: Its class scores.
        labels: What they should say.

    Returns:
        ``top1`` and ``per_class`` in percent, ``nll`` in nats, ``ece`` in [0, 1], ``reliability``.
    """
    if logits is None or labels is None:
        return dict.fromkeys(("top1", "ece", "nll", "reliability", "per_class"))
    confidences, chosen = logits.softmax(dim=1).max(dim=1)
    correct = chosen == labels
    return {
        "top1": 100 * correct.double().mean().item(),
        **calibration(confidences, correct),
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "per_class": list(per_class_accuracy(chosen, labels, logits.shape[1])),
    }


def calibration(confidences: Tensor, correct: Tensor) -> dict[str, Any]:
    """``ece`` and ``reliability`` of a model.

    Args:
        confidences: Probability of the class that was chosen for each image.
        correct: Whether it is the label.
    """
    return {
        "ece": expected_calibration_error(confidences, correct),
        "reliability": [asdict(one) for one in reliability_curve(confidences, correct)],
    }
