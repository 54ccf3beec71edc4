"""What a run tells of itself: agreement, looks at its steps, signs, and trackers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anykd.data import open_data
from anykd.models import FrozenTeacher
from anykd.recipe import Recipe, read_toml
from anykd.report.record import read_run
from tests.data.readers import labels_of
from tests.experiment.results import (
    InterruptionError,
    assert_same_run,
    classes_by_timm,
    interrupt,
    metrics,
    summary,
    weights,
)
from tests.experiment.runs import CNN, DATA, VIT, anykd, distill_cnn, short

# Students that agree with their teacher on some images, and not on others.
LEARNING = ("data.val_fraction=0.4", "train.peak_lr=0.01", "data.workers=0")
EPOCHS = 3


def of(event: str, run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if line["event"] == event]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def teacher(folder) -> Path:
    """One that is wrong of some images."""
    path = folder / "teacher"
    flags = ("--model", "vit_tiny_patch16_224", "--data", DATA, "--out", path)
    done = anykd("train", *flags, *short(VIT, "train.peak_lr=1e-4"))
    assert done.code == 0, done.err
    return path


@pytest.fixture(scope="module")
def run(folder, teacher) -> Path:
    return distill_cnn(folder / "run", teacher, *LEARNING, method="fbt", epochs=EPOCHS)


class TestAgreement:
    def test_is_the_share_of_images_that_both_see_alike(self, run, teacher):
        recipe = Recipe.from_dict(read_toml(run / "recipe.toml"))
        val = open_data(recipe.data).val
        student, taught = (classes_by_timm(path, val) for path in (run, teacher))
        expected = 100 * (student == taught).float().mean().item()
        assert 0 < expected < 100
        assert summary(run)["agreement"] == pytest.approx(expected)
        assert (taught != torch.tensor(labels_of(val))).any()

    def test_stands_in_every_epoch(self, run):
        lines = of("epoch", run)
        assert len(lines) == EPOCHS
        assert lines[-1]["agreement"] == summary(run)["agreement"]

    def test_takes_one_pass_of_the_teacher_however_many_epochs(
        self, teacher, tmp_path, monkeypatch
    ):
        seen: list[int] = []
        call = FrozenTeacher.__call__

        def counted(self: FrozenTeacher, images: Any, *rest: Any) -> Any:
            if isinstance(images, Tensor):  # in training, models share views of them
                seen.append(len(images))
            return call(self, images, *rest)

        monkeypatch.setattr(FrozenTeacher, "__call__", counted)
        counts = []
        for epochs in (1, 3):
            seen.clear()
            distill_cnn(tmp_path / str(epochs), teacher, *LEARNING, epochs=epochs)
            counts.append(sum(seen))
        assert counts[0] == counts[1] >= summary(tmp_path / "1")["num_samples"]

    def test_is_the_same_in_a_run_that_goes_on(self, run, teacher, tmp_path, monkeypatch):
        interrupt(monkeypatch, epoch=1, step=0)
        again = tmp_path / "run"
        with pytest.raises(InterruptionError):
            distill_cnn(again, teacher, *LEARNING, method="fbt", epochs=EPOCHS)
        monkeypatch.undo()
        assert anykd("distill", "--resume", "--out", again).code == 0
        assert_same_run(again, run)

    def test_of_the_control_arm_there_is_none(self, teacher, tmp_path):
        control = distill_cnn(tmp_path / "run", teacher, *LEARNING, method="control")
        assert "agreement" not in summary(control)
        assert of("diagnosis", control)[0]["grad_shares"] == {"task": 1.0}


class TestDiagnosis:
    def test_is_taken_in_the_middle_of_each_of_few_epochs(self, run):
        lines = of("diagnosis", run)
        steps = 1 + max(line["step"] for line in of("step", run))
        assert [(line["epoch"], line["step"]) for line in lines] == [
            (epoch, steps // 2) for epoch in range(EPOCHS)
        ]
        names = [key for key in of("step", run)[0] if key == "task" or "_ofa" in key]
        for line in lines:
            assert set(names) < line["grad_norms"].keys()
            assert sum(line["grad_shares"].values()) == pytest.approx(1)

    def test_knows_the_teachers_share_of_the_time(self, run):
        for line in read_run(run).diagnoses:
            assert 0 < line["teacher_share"] < 1
            assert line["step_seconds"] > 0

    def test_leaves_no_hook_and_changes_nothing(self, run, teacher, tmp_path):
        blind = distill_cnn(
            tmp_path / "run", teacher, *LEARNING, "train.diagnoses=0", method="fbt", epochs=EPOCHS
        )
        assert not of("diagnosis", blind)
        torch.testing.assert_close(weights(blind), weights(run), rtol=0, atol=0)


class TestSigns:
    def test_stand_in_the_summary_and_are_printed(self, teacher, tmp_path):
        done = anykd(
            *("distill", "--teacher", teacher, "--student", "resnet18", "--data", DATA),
            *("--method", "kd", "--out", tmp_path / "run"),
            *short(CNN, *LEARNING, "train.log_every=1", "method.kd_weight=1e-6", epochs=3),
        )
        assert done.code == 0, done.err
        signs = summary(tmp_path / "run")["working"]
        (light,) = [sign for sign in signs if sign["code"] == "term-weighs-little"]
        assert light["severity"] == "note"
        assert f"{light['message']}; {light['remedy']}" in done.err
        assert done.out.startswith("top-1 ")


class TestTrackers:
    def test_hold_what_the_metrics_hold_though_the_run_was_interrupted(
        self, teacher, tmp_path, monkeypatch
    ):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        path = tmp_path / "run"
        options = (*LEARNING, "train.log_every=1", 'track.to=["tensorboard"]')
        interrupt(monkeypatch, epoch=1, step=1)
        with pytest.raises(InterruptionError):
            distill_cnn(path, teacher, *options, epochs=2)
        monkeypatch.undo()
        assert anykd("distill", "--resume", "--out", path).code == 0
        found = EventAccumulator(str(path / "tensorboard")).Reload()
        lines = of("step", path)
        steps = 1 + max(line["step"] for line in lines)
        points = [(point.step, point.value) for point in found.Scalars("train/kd")]
        expected = [(line["epoch"] * steps + line["step"], line["kd"]) for line in lines]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected])
        last = found.Scalars("val/agreement")[-1]
        assert (last.step, last.value) == (2 * steps - 1, pytest.approx(summary(path)["agreement"]))
        assert found.Scalars("summary/top1")[0].value == pytest.approx(summary(path)["top1"])

    def test_that_are_missing_are_named_before_anything_is_written(
        self, teacher, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        done = anykd(
            *("distill", "--teacher", teacher, "--student", "resnet18", "--data", DATA),
            *("--out", tmp_path / "run", "--set", 'track.to=["wandb"]'),
        )
        assert done.code == 2
        assert "error: track.to names wandb, which is not installed" in done.err
        assert "hint: pip install 'anykd[track]'" in done.err
        assert not (tmp_path / "run").exists()
