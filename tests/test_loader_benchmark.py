"""The page of the loader's benchmark follows from its results."""

import json

from benchmarks.loader import PAGE, RESULTS, page


def test_the_page_is_what_the_results_say():
    assert PAGE.read_text() == page(json.loads(RESULTS.read_text()))
