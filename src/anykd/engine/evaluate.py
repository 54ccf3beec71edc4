"""Accuracy of a classifier over a data set, every sample counted once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anykd.distributed import sum_over_ranks
from anykd.errors import DataError
from anykd.types import Batch

from .precision import autocast

__all__ = ["Scores", "evaluate"]


@dataclass(frozen=True)
class Scores:
    """How well a classifier did.

    Attributes:
        top1: Percent of images whose best class is the label.
        top5: Percent with the label among the best five; equal to 100 below six classes.
        loss: Mean cross-entropy, in nats.
        num_samples: Images, over all ranks.
    """

    top1: float
    top5: float
    loss: float
    num_samples: int


@torch.no_grad()
def evaluate(
    classify: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    see: Callable[[Batch, Tensor], None] = lambda batch, logits: None,
) -> Scores:
    """Score a classifier.

    Args:
        classify: From images in [0, 1] to class scores; in eval mode.
        batches: This rank's share of the samples, each once, with labels.
        device: Where to compute.
        dtype: Type for autocast, or None.
        see: Called with each batch and its class scores.

    Raises:
        DataError: If there is no image.
    """
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches:
        batch = batch.to(device)
        assert batch.labels is not None
        with autocast(device, dtype):
            logits = classify(batch.images)
        see(batch, logits)
        logits, target = logits.float(), batch.labels.argmax(dim=1)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        loss = F.cross_entropy(logits, target, reduction="sum")
        count = torch.tensor(len(batch), device=device)
        totals += torch.stack([best[:, 0].sum(), best.any(dim=1).sum(), loss, count])
    top1, top5, loss, count = sum_over_ranks(totals).tolist()
    if not count:
        raise DataError("there is no image to score by", hint="mend the held-out images")
    return Scores(100 * top1 / count, 100 * top5 / count, loss / count, int(count))
