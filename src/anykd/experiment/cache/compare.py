"""Stored answers against live ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anykd.data.cache import Codec, Manifest
from anykd.types import Stored

__all__ = ["Differences", "compare", "tolerated"]

_EXPECTED = {"float32": 2e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Largest difference between two times that a teacher looks at an image, as a share of the range of
its answer: in other batches, on other processors, with other kernels."""
_ROUNDING = {"float16": 2**-10, "float32": 2**-22}


@dataclass(frozen=True)
class Differences:
    """How far stored and live answers to each image are apart; 0 where nothing is stored.

    Attributes:
        logits: Largest difference of a stored class score, both measured from the row's best.
        mass: Of the probability that all other classes have together.
        pooled: Largest difference of a pooled value.
        agrees: 1 where the best class is the same.
        range_logits: Largest live class score of those that are stored, from the row's best.
        range_pooled: Largest live pooled value.
    """

    logits: Float[Tensor, " samples"]
    mass: Float[Tensor, " samples"]
    pooled: Float[Tensor, " samples"]
    agrees: Float[Tensor, " samples"]
    range_logits: Float[Tensor, " samples"]
    range_pooled: Float[Tensor, " samples"]

    @classmethod
    def joined(cls, parts: "Sequence[Differences]") -> "Differences":
        """Those of several batches."""
        fields = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.cat(tensors) for tensors in fields))


def tolerated(manifest: Manifest, found: Differences) -> tuple[float, float]:
    """What rounding and the order of sums may explain of class scores, and of pooled values."""
    share = _EXPECTED[manifest.precision] + _ROUNDING[manifest.codec.dtype]
    return share * float(found.range_logits.max()), share * float(found.range_pooled.max())


def compare(codec: Codec, records: np.ndarray, live: Stored) -> Differences:
    """Compare records with what the teacher says now of the same images.

    Args:
        codec: Of the records.
        records: One for each image.
        live: float32, on the CPU; a part that it lacks is not compared.
    """
    stored = codec.decode(records)
    nothing = torch.zeros(len(records))
    logits = mass = pooled = range_logits = range_pooled = nothing
    agrees = torch.ones(len(records))
    if stored.logits is not None and live.logits is not None:
        ours = stored.logits - stored.logits.amax(dim=1, keepdim=True)
        theirs = live.logits - live.logits.amax(dim=1, keepdim=True)
        agrees = (ours.argmax(dim=1) == theirs.argmax(dim=1)).float()
        kept = torch.ones_like(ours, dtype=torch.bool)
        if codec.top_k is not None:
            classes = torch.from_numpy(records["classes"].astype(np.int64))
            kept = torch.zeros_like(kept).scatter_(1, classes, True)
            ours_rest, theirs_rest = (
                (each.softmax(dim=1) * ~kept).sum(dim=1) for each in (ours, theirs)
            )
            mass = (ours_rest - theirs_rest).abs()
        logits = ((ours - theirs).abs() * kept).amax(dim=1)
        range_logits = (theirs.abs() * kept).amax(dim=1)
    if stored.pooled is not None:
        assert live.pooled is not None
        pooled = (stored.pooled - live.pooled).abs().amax(dim=1)
        range_pooled = live.pooled.abs().amax(dim=1)
    return Differences(logits, mass, pooled, agrees, range_logits, range_pooled)
