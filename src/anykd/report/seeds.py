"""Numbers of several seeds as mean and spread."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Spread", "spread"]


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
        mean = format(self.mean, form).replace("-", "−")
        return mean if self.std is None else f"{mean} ± {format(self.std, form.lstrip('+'))}"


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
