"""``anykd report`` of runs that were really trained."""

import json
import re
import shlex

import pytest

from anykd.report import read_run
from tests.experiment.runs import anykd, distill_cnn, train_vit
from tests.report.reading import read_page
from tests.report.small_runs import write_run


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run that a teacher had a part in."""
    folder = tmp_path_factory.mktemp("trained")
    return distill_cnn(folder / "kd", train_vit(folder / "teacher"))


def test_a_run_becomes_a_page_whose_commands_train_its_control_and_itself(taught, tmp_path):
    path = tmp_path / "page.html"
    done = anykd("report", taught, "--out", path)
    assert (done.code, done.out) == (0, f"{path}\n"), done.err
    alone = read_page(path)
    commands = re.findall(r"anykd (distill [^<]*? --out \S+_(control|again))", alone.text)
    assert [name for _, name in commands] == ["control", "again"]
    for command, name in commands:
        done = anykd(*shlex.split(command))
        assert done.code == 0, done.err
        assert (taught.parent / f"kd_{name}" / "summary.json").is_file()

    own, control, again = (
        read_run(taught.parent / name) for name in ("kd", "kd_control", "kd_again")
    )
    assert (control.method, again.summary["top1"]) == ("control", own.summary["top1"])
    anykd("report", taught, control.path, taught.parent / "teacher", "--out", path)
    both = read_page(path)
    gain = own.summary["top1"] - control.summary["top1"]
    level = round(gain, 2) == 0
    assert ("level with the control" if level else f"{abs(gain):.2f} points") in both.text
    assert "which proves nothing yet" in both.text
    assert {"e1-found", "e1-training", "e1-features", "e1-examples"} <= set(both.ids())
    assert str(taught.parent / "teacher") in both.text


def test_without_out_it_is_written_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "kd")
    assert anykd("report", "kd").out == "report.html\n"
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("given", "out", "message", "hint"),
    [
        ("none", "page.html", "there is no none", "give the --out folder of a training"),
        (
            "empty",
            "page.html",
            "empty is no run and contains none",
            "give the --out folder of a training, or a folder of such folders",
        ),
        ("kd", "empty", "empty is a folder", "name a file: --out empty/report.html"),
        (
            "kd",
            "file/page.html",
            "file/page.html cannot be written: a part of this path is a file, no folder",
            "give a folder that can be written: --out DIR",
        ),
    ],
)
def test_what_goes_wrong_is_said(given, out, message, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "kd", epochs=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    done = anykd("report", given, "--out", out)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {message}\nhint: {hint}\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_being_written_has_a_page(tmp_path):
    """Its last line may be torn, and what comes last is not there yet."""
    run = write_run(tmp_path / "kd", finished=False, analysed=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "step", "epoch": 10})[:-4])
    done = anykd("report", run, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
