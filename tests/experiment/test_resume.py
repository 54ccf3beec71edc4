"""Going on with other settings than a run began with."""

from pathlib import Path

import pytest

from anykd.experiment.resume import changed_settings
from anykd.recipe import Recipe, apply_overrides, read_toml
from tests.experiment.results import InterruptionError, interrupt, metrics
from tests.experiment.runs import DATA, VIT, Outcome, anykd, newest_checkpoint, short


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> Path:
    """A run of three epochs that was stopped in its second one."""
    interrupt(monkeypatch, epoch=1, step=2)
    flags = short(VIT, "train.log_every=1", "train.checkpoint_every=1", epochs=3)
    with pytest.raises(InterruptionError):
        anykd("train", "--model", "vit_tiny_patch16_224", "--data", DATA, "-o", tmp_path, *flags)
    monkeypatch.undo()
    return tmp_path


def resume(run: Path, *sets: str) -> Outcome:
    flags = [part for value in sets for part in ("--set", value)]
    return anykd("train", "--resume", "--out", run, *flags)


def test_takes_settings_that_decide_nothing(stopped):
    done = resume(stopped, "data.workers=1", "train.checkpoint_every=2", "train.max_bad_steps=3")
    assert done.code == 0, done.err
    said = "goes on with other settings: data.workers, train.checkpoint_every, train.max_bad_steps"
    assert said in done.err
    assert read_toml(stopped / "recipe.toml")["data"]["workers"] == 1
    assert len(metrics(stopped)) == 3 * 6


def test_refuses_and_names_those_that_decide(stopped):
    before = (stopped / "recipe.toml").read_text()
    done = resume(stopped, "train.peak_lr=0.5", "train.log_every=7", "seed=3")
    assert done.code == 2
    assert "is a run of another recipe: seed, train.peak_lr\n" in done.err
    assert "--force" in done.err
    assert (stopped / "recipe.toml").read_text() == before


def test_takes_them_by_force(stopped):
    done = anykd("train", "--resume", "--force", "--out", stopped, "--set", "train.epochs=4")
    assert done.code == 0, done.err
    assert "goes on with other settings: train.epochs" in done.err
    assert len(metrics(stopped)) == 4 * 6
    assert newest_checkpoint(stopped).name == "step-00000016"


def test_of_other_steps_within_an_epoch_is_refused(stopped):
    flags = ("--set", "train.batch_size=8")
    done = anykd("train", "--resume", "--force", "--out", stopped, *flags)
    assert done.code == 2
    assert "of 4, and an epoch has 8 now" in done.err


def test_of_another_model_is_refused_in_words(stopped):
    flags = ("--set", "student.options.embed_dim=16")
    done = anykd("train", "--resume", "--force", "--out", stopped, *flags)
    assert done.code == 2
    assert "is of another model" in done.err


def test_settings_of_one_teacher_of_several_are_named():
    values = {
        "student": {"name": "resnet18"},
        "data": {"source": "digits"},
        "teacher": [{"name": "a"}, {"name": "b"}],
        "method": {"name": "kd"},
    }
    before = Recipe.from_dict(values)
    after = Recipe.from_dict(apply_overrides(values, ["teacher.2.weight=0.5", "train.epochs=7"]))
    assert changed_settings(before, after) == ["teacher.2.weight", "train.epochs"]
    assert changed_settings(before, before) == []
