"""The table of model families: what it says is so, and it is of the installed timm."""

import json

import pytest
import timm

from benchmarks.coverage import RESULTS, ROOT, TABLE, Row, cover, families, render

SUBSET = (
    "byobnet",  # convolutions, stages that are reparameterised
    "convnext",
    "efficientnet",  # stage 4 is widened behind the last level
    "edgenext",  # a hybrid
    "eva",  # rotary positions, class token and registers
    "levit",  # three levels
    "mlp_mixer",
    "nfnet",
    "pit",  # three levels, two streams: no tail
    "resnet",
    "vision_transformer",
    "vision_transformer_relpos",  # relative positions
)


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(RESULTS.read_text())


@pytest.mark.parametrize("family", SUBSET)
def test_a_family_does_what_the_table_says(family, results):
    (row,) = [Row(**row) for row in results["families"] if row["family"] == family]
    assert cover(family, row.model) == row


def test_the_page_is_made_from_the_results(results):
    assert TABLE.read_text() == render(results)


def test_the_table_has_every_family_of_the_timm_it_was_made_with(results):
    if timm.__version__ != results["timm"]:
        pytest.skip(f"the table is of timm {results['timm']}, installed is {timm.__version__}")
    assert [row["family"] for row in results["families"]] == families()


def test_prose_gives_the_same_numbers(results):
    tails = sum(row["tail"] for row in results["families"])
    decision = ROOT / "docs" / "decisions" / "0008-tails-are-found-and-proved.md"
    assert f"{tails} of {len(results['families'])} families have a tail" in decision.read_text()
    assert f"for FBT in {tails} of them" in (ROOT / "CHANGELOG.md").read_text()


def test_the_aims_are_met(results):
    rows = [Row(**row) for row in results["families"]]
    assert all(row.shapes for row in rows)
    assert all(row.front and len(row.student) == len(row.teacher) == 3 for row in rows)
    assert sum(row.tail for row in rows) >= 70
    assert all(row.tail or row.reasons["tail"] for row in rows)
