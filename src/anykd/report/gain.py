"""What distillation gave over the same training without it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from .noise import interval_factor
from .record import RunRecord

__all__ = ["Gain", "measure_gain"]

_ENOUGH = 3
"""Runs below which nothing is said of their noise."""


@dataclass(frozen=True)
class Gain:
    """Top-1 of runs against that of control runs, in points of percent.

    Attributes:
        mean: Of the differences of pairs, or the difference of means.
        std: Sample standard deviation of the differences; of unpaired runs the root of the sum of
            both variances. None with a single run on a side.
        n: Pairs, or the smaller number of runs.
        paired: Whether runs of the same seed were compared.
        half_width: Of the 95 % confidence interval around the mean, at least one held-out image;
            None where n is below 3: two differences that happen to be alike have no spread, and
            prove nothing.
    """

    mean: float
    std: float | None
    n: int
    paired: bool
    half_width: float | None


def measure_gain(records: Sequence[RunRecord], controls: Sequence[RunRecord]) -> Gain | None:
    """Compare runs of one method with those of the control arm.

    Args:
        records: Runs of one recipe, each of another seed.
        controls: The same without distillation.

    Returns:
        None where a side has no run with a top-1.
    """
    ours, theirs = _top1_by_seed(records), _top1_by_seed(controls)
    if not ours or not theirs:
        return None
    image = _one_image(records)
    shared = sorted(ours.keys() & theirs.keys())
    if shared:
        return _paired([ours[seed] - theirs[seed] for seed in shared], image)
    return _unpaired(list(ours.values()), list(theirs.values()), image)


def _one_image(records: Sequence[RunRecord]) -> float:
    """What one held-out image is worth, in points; 0 where their number is not known."""
    counts = [record.summary.get("num_samples") for record in records]
    return max((100 / count for count in counts if count), default=0.0)


def _top1_by_seed(records: Sequence[RunRecord]) -> dict[int, float]:
    found = {record.seed: record.summary.get("top1") for record in records}
    return {seed: top1 for seed, top1 in found.items() if top1 is not None}


def _paired(differences: list[float], image: float) -> Gain:
    n = len(differences)
    if n == 1:
        return Gain(differences[0], None, 1, True, None)
    std = stdev(differences)
    half_width = max(image, interval_factor(n - 1) * std / math.sqrt(n)) if n >= _ENOUGH else None
    return Gain(mean(differences), std, n, True, half_width)


def _unpaired(ours: list[float], theirs: list[float], image: float) -> Gain:
    difference, n = mean(ours) - mean(theirs), min(len(ours), len(theirs))
    if n == 1:
        return Gain(difference, None, 1, False, None)
    variances = [stdev(side) ** 2 for side in (ours, theirs)]
    error = math.sqrt(variances[0] / len(ours) + variances[1] / len(theirs))
    # Welch's degrees of freedom are never fewer than those of the smaller side.
    half_width = max(image, interval_factor(n - 1) * error) if n >= _ENOUGH else None
    return Gain(difference, math.sqrt(sum(variances)), n, False, half_width)
