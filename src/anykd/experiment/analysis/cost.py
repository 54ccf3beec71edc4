"""What one image costs a model: arithmetic and time."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from anykd.engine import autocast
from anykd.experiment.flops import classify, count_flops
from anykd.models import StagedModel
from anykd.models.probe import evaluating, probe_images

__all__ = ["image_cost"]

_WARMUP = 2
_RUNS = 20
_BUDGET = 0.2
"""Seconds after which no further run is begun."""


@torch.no_grad()
def image_cost(
    model: StagedModel, device: torch.device, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Measure a model on one image of its own size.

    Args:
        model: On the device.
        device: Where it is.
        dtype: Type for autocast, or None.

    Returns:
        ``parameters``; ``flops``, twice the multiply-adds of matrix products and convolutions;
        ``latency_ms``, the median of some runs; ``image_size``.
    """
    image = probe_images(model.image_size, like=model.mean)[:1]
    with evaluating(model), autocast(device, dtype):
        latency = _median_seconds(model, image, device)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": count_flops(model),
        "latency_ms": round(1000 * latency, 4),
        "image_size": list(model.image_size),
    }


def _median_seconds(model: StagedModel, image: Tensor, device: torch.device) -> float:
    found: list[float] = []
    begun = time.perf_counter()
    for number in range(_WARMUP + _RUNS):
        before = _now(device)
        classify(model, image)
        now = _now(device)
        if number >= _WARMUP:
            found.append(now - before)
        if found and now - begun > _BUDGET:
            break
    return statistics.median(found)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
