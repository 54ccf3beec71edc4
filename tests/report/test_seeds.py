"""Numbers of several seeds, against SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from anykd.report.seeds import gain, spread

SCORES = {0: 92.1, 1: 93.0, 2: 91.4, 4: 92.8}
CONTROL = {0: 90.0, 1: 91.9, 2: 91.2, 3: 85.0, 4: 91.0}


def test_a_spread_is_mean_and_sample_deviation():
    values = [1.0, 2.5, 7.0]
    found = spread(values)
    assert found is not None
    assert (found.mean, found.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found.n == 3


def test_a_spread_passes_over_what_is_missing():
    found = spread([None, 3.0, math.nan])
    assert found is not None
    assert (found.mean, found.std, found.n) == (3.0, None, 1)
    assert spread([None]) is None


def test_a_minus_is_a_minus():
    found = spread([-1.25])
    assert found is not None
    assert found.text("+.2f") == "−1.25"


def test_a_gain_is_of_pairs_of_one_seed():
    found = gain(SCORES, CONTROL)
    assert found is not None
    pairs = [SCORES[seed] - CONTROL[seed] for seed in (0, 1, 2, 4)]
    assert found.paired
    assert (found.spread.mean, found.spread.n) == pytest.approx((np.mean(pairs), 4))
    low, high = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((high - low) / 2, rel=1e-3)
    assert found.within_noise is bool(low < 0 < high)


@pytest.mark.parametrize("n", [3, 5, 10, 31, 40])
def test_an_interval_is_that_of_students_t(n):
    rng = np.random.default_rng(n)
    own = dict(enumerate(rng.normal(1, 1, n).tolist()))
    found = gain(own, dict.fromkeys(own, 0.0))
    low, high = stats.ttest_1samp(list(own.values()), 0).confidence_interval(0.95)
    assert found is not None
    assert found.interval == pytest.approx((high - low) / 2, rel=1e-3)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_prove_nothing(seeds):
    """Two differences may be the same by chance, and have no deviation then."""
    found = gain(dict.fromkeys(range(seeds), 92.0), dict.fromkeys(range(seeds), 90.0))
    assert found is not None
    assert found.spread.mean == 2
    assert found.within_noise is None


def test_other_seeds_are_no_pairs():
    found = gain({0: 92.0}, {1: 90.0, 2: 91.0})
    assert found is not None
    assert (found.paired, found.spread.mean, found.interval) == (False, 1.5, None)


def test_nothing_has_no_gain():
    assert gain({}, {0: 1.0}) is None
    assert gain({0: 1.0}, {}) is None
