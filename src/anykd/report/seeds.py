"""Numbers of several seeds: mean, spread, and whether a difference is more than noise."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import starmap

__all__ = ["Gain", "Spread", "gain", "spread"]

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Spread:
    """What several runs found.

    Attributes:
        mean: Their mean.
        std: Their sample standard deviation; None for one.
        n: How many.
    """

    mean: float
    std: float | None
    n: int

    def text(self, form: str = ".2f") -> str:
        """Mean ± standard deviation.

        Args:
            form: Of the mean, such as ``+.2f``.
        """
        mean = format(self.mean, form)
        return mean if self.std is None else f"{mean} ± {format(self.std, form.lstrip('+'))}"


@dataclass(frozen=True)
class Gain:
    """How much one arm is above another.

    Attributes:
        spread: Of the differences of pairs of one seed; where no seed is shared, the difference of
            the means, with ``n`` the fewer of the two.
        paired: Whether seeds are shared.
        interval: Half of the 95 % confidence interval around the mean; None below two pairs.
    """

    spread: Spread
    paired: bool
    interval: float | None

    @property
    def within_noise(self) -> bool | None:
        """Whether zero lies within the interval; None where there is none."""
        return None if self.interval is None else abs(self.spread.mean) <= self.interval


def spread(values: Iterable[float | None]) -> Spread | None:
    """Sum numbers up, leaving out those that are missing.

    Example:
        >>> spread([1.0, None, 3.0]).text()
        '2.00 ± 1.41'
    """
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return None
    std = statistics.stdev(found) if len(found) > 1 else None
    return Spread(statistics.fmean(found), std, len(found))


def gain(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Gain | None:
    """Compare two arms by their scores.

    Args:
        scores: By seed.
        baseline: Of the arm that is compared with.

    Returns:
        None where one of the two has no scores.

    Example:
        >>> found = gain({0: 92.0, 1: 93.0}, {0: 90.0, 1: 91.5})
        >>> found.spread.text("+.2f"), found.paired, found.within_noise
        ('+1.75 ± 0.35', True, True)
    """
    if not scores or not baseline:
        return None
    seeds = sorted(scores.keys() & baseline.keys())
    if not seeds:
        difference = statistics.fmean(scores.values()) - statistics.fmean(baseline.values())
        return Gain(Spread(difference, None, min(len(scores), len(baseline))), False, None)
    pairs = [(scores[seed], baseline[seed]) for seed in seeds]
    found = spread(starmap(lambda own, other: own - other, pairs))
    if found is None:
        return None
    if found.std is None:
        return Gain(found, True, None)
    quantile = _T95[found.n - 2] if found.n - 2 < len(_T95) else 1.96
    return Gain(found, True, quantile * found.std / math.sqrt(found.n))
