"""A result in Python: what it prints, what a notebook shows, and where it leads."""

import copy
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch import nn

import anykd as package
from anykd.experiment.result import Result
from tests.experiment.runs import DATA, train_vit

CNN_OPTIONS = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
HOSTILE = "<script>alert(\"1\")</script> & 'x' </td></table>"
VOID = {"br"}


class Page(HTMLParser):
    """Reads a fragment strictly: every tag is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    folder = tmp_path_factory.mktemp("runs")
    return package.distill(
        teacher=train_vit(folder / "teacher"),
        student={"name": "resnet18", "options": CNN_OPTIONS},
        data=DATA,
        method="kd",
        out=folder / "run",
        image_size=32,
        epochs=3,
        batch_size=16,
        precision="float32",
    )


def hostile(tmp_path: Path) -> Result:
    """A result in which every name is one that a page might run."""
    remark = {"severity": "warning", "code": "x", "message": HOSTILE, "remedy": HOSTILE}
    summary = {
        "student": HOSTILE,
        "teachers": [{"name": HOSTILE, "top1": 9.0}],
        "method": HOSTILE,
        "top1": 50.0,
        "agreement": 51.0,
        "working": [remark],
    }
    return Result(tmp_path / HOSTILE, nn.Identity(), summary)


def test_it_prints_as_a_short_table(result):
    said = repr(result)
    assert f"student     resnet18, top-1 {result.top1:.2f} %" in said
    assert "teacher     vit_tiny_patch16_224, top-1" in said
    assert "method      kd" in said
    assert str(result.path) in said
    assert max(map(len, said.splitlines()[:6])) < 120


def test_a_notebook_shows_the_same_and_the_curve(result):
    page = Page(result._repr_html_())
    assert "resnet18" in page.text
    assert str(result.path) in page.text
    assert {"table", "svg", "polyline"} <= set(page.tags)
    shown = page.text.split("by epoch")[1]
    lines = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    by_epoch = [line["top1"] for line in lines if line["event"] == "epoch"]
    assert len(by_epoch) == 3
    assert f"from {by_epoch[0]:.2f} % to {by_epoch[-1]:.2f} %" in shown


def test_it_sets_no_colours_of_its_own(result):
    found = result._repr_html_()
    assert "color:#" not in found
    assert 'stroke="currentColor"' in found


def test_names_stay_text(tmp_path):
    found = hostile(tmp_path)
    page = Page(found._repr_html_())
    assert "script" not in page.tags
    assert page.tags.count("table") == 1
    assert page.text.count(HOSTILE) == 6
    assert HOSTILE in repr(found)


def test_what_was_found_is_said_with_its_remedy(result):
    working = [
        {"severity": "good", "code": "a", "message": "The loss fell.", "remedy": ""},
        {"severity": "warning", "code": "b", "message": "It did not learn.", "remedy": "Wait."},
    ]
    told = replace(result, summary=result.summary | {"working": working})
    assert repr(told).splitlines()[-2:] == ["✓ The loss fell.", "⚠ It did not learn. (Wait.)"]
    page = Page(told._repr_html_())
    assert page.tags.count("li") == 2
    assert "It did not learn.Wait." in page.text
    silent = replace(result, summary={k: v for k, v in told.summary.items() if k != "working"})
    assert "li" not in Page(silent._repr_html_()).tags


def test_numbers_that_are_not_there_are_left_out(tmp_path):
    found = Result(tmp_path, nn.Identity(), {"top1": None, "agreement": 12.5})
    assert found.top1 is None
    assert found.agreement == 12.5
    assert "12.50 %" in repr(found)
    assert "None" not in repr(found) + found._repr_html_()
    assert "None" not in repr(Result(tmp_path, nn.Identity(), {}))


def test_it_is_shown_where_its_folder_is_gone(result, tmp_path):
    moved = replace(result, path=tmp_path / "gone")
    assert "svg" not in Page(moved._repr_html_()).tags


def test_it_is_exported(result, tmp_path):
    (done,) = result.export("timm", out=tmp_path)
    assert done.path == tmp_path / "timm"
    assert done.parity.agreement == 100


def test_it_is_reported(result, tmp_path):
    page = result.report()
    assert page == result.path / "report.html"
    assert "resnet18" in page.read_text()
    assert result.report(tmp_path / "own.html") == tmp_path / "own.html"


def test_it_is_a_value(result):
    assert copy.copy(result) == result
    assert package.Result is Result
