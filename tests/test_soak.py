"""What the long soak found, and that its page says so."""

import json

from benchmarks.soak import PAGE, RESULTS, render


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == render(json.loads(RESULTS.read_text()))


def test_nothing_was_lost():
    found = json.loads(RESULTS.read_text())["killed"]
    assert found["same_trace"]
    assert found["same_student"]
    assert len(found["at_steps"]) >= 20
    assert found["passed_over"] >= len(found["corrupted"]) > 0
