"""How far accuracies differ by chance."""

import math

__all__ = ["interval_factor", "noise_of_difference"]

_TWO_SIDED_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t for 1 to 10 degrees of freedom."""


def noise_of_difference(percent: float, num_samples: int | None) -> float:
    """Two standard errors of the difference of two accuracies, in points of percent.

    The two are taken as measured on different images; on the same ones the noise is smaller.

    Args:
        percent: One of them.
        num_samples: Images that each was measured on; None where it is not known.

    Returns:
        0 where the number of images is not known.
    """
    if not num_samples:
        return 0.0
    # With all or none right the plain estimate would be 0; one image more or less is not.
    share = min(max(percent / 100, 1 / (num_samples + 2)), 1 - 1 / (num_samples + 2))
    return 200 * math.sqrt(2 * share * (1 - share) / num_samples)


def interval_factor(degrees: int) -> float:
    """Standard errors to either side that a 95 % confidence interval of a mean spans.

    Args:
        degrees: Of freedom, from 1; above 10 the factor of 10 is taken, which is a little wide.
    """
    return _TWO_SIDED_95[min(degrees, len(_TWO_SIDED_95)) - 1]
