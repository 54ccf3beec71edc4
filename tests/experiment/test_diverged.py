"""A student whose training has diverged: its files are still JSON, and it is not exported."""

import json
from pathlib import Path
from typing import Any

import pytest

from anykd.errors import ModelError
from anykd.experiment.export import export_run
from tests.experiment.runs import anykd, distill_cnn, train_vit


def strict(text: str) -> Any:
    """Read JSON as its standard has it, without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return train_vit(tmp_path_factory.mktemp("diverged") / "teacher")


@pytest.fixture(scope="module")
def run(teacher) -> Path:
    sets = ("train.peak_lr=1e30", "train.max_bad_steps=1000")
    return distill_cnn(teacher.with_name("run"), teacher, *sets)


def test_its_files_are_json(run):
    files = [path for path in run.rglob("*.json") if "checkpoint" not in path.parts]
    assert {"summary.json", "analysis.json", "plan.json"} <= {path.name for path in files}
    for path in files:
        strict(path.read_text())
    for line in (run / "metrics.jsonl").read_text().splitlines():
        strict(line)
    assert strict((run / "summary.json").read_text())["loss"] is None


@pytest.mark.parametrize("command", ["evaluate", "analyze"])
def test_what_commands_say_of_it_is_json(command, run, teacher):
    others = (teacher, "--num-samples", 16) if command == "analyze" else ()
    done = anykd(command, run, *others, "--json")
    assert done.code == 0, done.err
    assert "null" in done.out
    strict(done.out)


@pytest.mark.parametrize("format", ["timm", "torch", "onnx"])
def test_it_is_not_exported_and_why_is_said(format, run):
    with pytest.raises(ModelError) as caught:
        export_run(run, [format])
    assert str(caught.value) == (
        "the student itself is broken: its outputs are not finite numbers on 16 of 16 held-out "
        "images, so no file could be compared with it"
    )
    assert "train.peak_lr" in (caught.value.hint or "")
    assert not (run / "export").exists()
