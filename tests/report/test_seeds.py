"""Numbers of several seeds, against NumPy."""

import json
import math

import numpy as np
import pytest

from anykd.report.arms import sort_runs
from anykd.report.find import find_runs
from anykd.report.headline import headline
from anykd.report.seeds import spread
from tests.report.small_runs import write_run


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


def test_two_seeds_that_agree_by_chance_are_no_proof(tmp_path):
    """Their deviation is 0, and so is any interval that is made of it."""
    for method, top1 in (("control", 90.0), ("kd", 91.0)):
        for seed in (0, 1):
            run = write_run(tmp_path / f"{method}{seed}", method=method, seed=seed, epochs=2)
            path = run / "summary.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"top1": top1 + seed}))
    (found,) = sort_runs(find_runs([tmp_path]))
    said = headline(found)
    assert "1.00 ± 0.00 points above the control over 2 paired seeds, too few" in said.sentence
    assert all(cell.tone != "good" for row in said.table.rows for cell in row)
    assert [row[3].note for row in said.table.rows if row[3].text] == ["n = 2, too few to be sure"]
