"""``anykd report`` of runs that were really trained."""

import json
import os
import re

import pytest

from anykd.report import read_run
from tests.experiment.runs import CNN, DATA, anykd, distill_cnn, short, train_vit
from tests.report.reading import read_page
from tests.report.small_runs import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher, a control and a student of two seeds."""
    folder = tmp_path_factory.mktemp("trained")
    teacher = train_vit(folder / "teacher")
    for seed in (0, 1):
        distill_cnn(folder / f"kd{seed}", teacher, f"seed={seed}", epochs=2)
        control = ["distill", "--student", "resnet18", "--data", DATA, "--method", "control"]
        flags = short(CNN, f"seed={seed}", epochs=2)
        done = anykd(*control, "-o", folder / f"control{seed}", *flags)
        assert done.code == 0, done.err
    return folder


def test_trained_runs_become_a_page(runs, tmp_path):
    done = anykd("report", runs, "--out", tmp_path / "page.html")
    assert (done.code, done.out) == (0, f"{tmp_path / 'page.html'}\n"), done.err
    found = read_page(tmp_path / "page.html")
    gains = [
        read_run(runs / f"kd{seed}").summary["top1"]
        - read_run(runs / f"control{seed}").summary["top1"]
        for seed in (0, 1)
    ]
    mean = sum(gains) / 2
    assert f"{abs(mean):.2f} ± " in found.text
    assert "over 2 paired seeds, too few to be sure" in found.text
    for run in runs.iterdir():
        assert str(run) in found.text
    assert "e1-training" in found.ids()
    assert ("e1-features" in found.ids()) == bool(read_run(runs / "kd0").analysis)


def test_the_command_for_a_control_trains_one(runs, tmp_path, monkeypatch):
    anykd("report", runs / "kd0", "--out", tmp_path / "page.html")
    found = re.search(
        r"This trains one: (anykd .*?_control)", read_page(tmp_path / "page.html").text
    )
    assert found
    words = found[1].split()[1:]
    words[-1] = str(tmp_path / "control")
    done = anykd(*words)
    assert done.code == 0, done.err
    assert read_run(tmp_path / "control").method == "control"


def test_the_command_that_repeats_a_run_repeats_it(runs, tmp_path):
    anykd("report", runs / "kd1", "--out", tmp_path / "page.html")
    found = re.search(
        r"(anykd distill \S+/recipe.toml) --out \S+_again", read_page(tmp_path / "page.html").text
    )
    assert found
    done = anykd(*found[1].split()[1:], "--out", tmp_path / "again")
    assert done.code == 0, done.err
    assert read_run(tmp_path / "again").summary["top1"] == read_run(runs / "kd1").summary["top1"]


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others_is_said(tmp_path):
    write_run(tmp_path / "kd", epochs=2)
    (tmp_path / "locked").mkdir(mode=0o555)
    done = anykd("report", tmp_path / "kd", "--out", tmp_path / "locked" / "page.html")
    assert done.code == 2
    assert "this user may not write there" in done.err


def test_a_run_that_is_being_written_has_a_page(tmp_path):
    """Its last line may be torn, and what comes last is not there yet."""
    run = write_run(tmp_path / "kd", finished=False, analysed=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "step", "epoch": 10})[:-4])
    done = anykd("report", run, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
