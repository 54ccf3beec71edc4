"""The main job, from a command to a model that timm loads."""

import json
import shutil
import sys
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import nn

import anykd as package
from anykd.data import DataConfig, DataSplits, open_data
from anykd.data.reader import SubsetReader
from anykd.errors import CheckpointError
from anykd.experiment import Result, assemble, run
from anykd.experiment.running import Running
from anykd.methods import METHODS
from anykd.recipe import Recipe, read_toml
from tests.experiment.results import assert_same_run, metrics, summary, weights
from tests.experiment.runs import (
    CNN,
    DATA,
    VIT,
    anykd,
    distill_cnn,
    saved_tensors,
    short,
    train_vit,
)

CONSOLE_SCRIPT = Path(sys.executable).parent / "anykd"


class InterruptionError(Exception):
    """The process is taken away."""


def digest(folder: Path) -> dict[str, str]:
    """A hash of every file."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def accuracy_by_timm(path: Path, data: DataConfig) -> float:
    """Top-1 of a run's student as somebody without anykd has it, in percent."""
    model = timm.create_model(f"local-dir:{path / 'student'}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config(model=model), is_training=False)
    reader = open_data(data).val
    images = torch.stack([transform(reader[i].image) for i in range(len(reader))])
    with torch.no_grad():
        found = model(images).argmax(dim=1)
    return 100 * (found == torch.tensor(reader.labels)).double().mean().item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def teacher(folder) -> Path:
    return train_vit(folder / "teacher")


@pytest.fixture(scope="module", params=METHODS)
def finished(request, folder, teacher) -> Path:
    """A finished run of each method."""
    return distill_cnn(folder / request.param, teacher, method=request.param)


@pytest.fixture(scope="module")
def weak(folder, teacher) -> Path:
    """A finished run whose student is at chance: one epoch is nothing to its batch norms."""
    return distill_cnn(folder / "weak", teacher)


@pytest.fixture(scope="module")
def digits(folder) -> Path:
    """A ViT that got some of the held-out digits right, and some wrong."""
    data = ("data.limit=400", "augment.preset=none", "train.peak_lr=3e-3")
    done = anykd(
        *("train", "--model", "vit_tiny_patch16_224", "--data", "digits", "-o", folder / "digits"),
        *short(VIT, *data, epochs=3),
    )
    assert done.code == 0, done.err
    return folder / "digits"


class TestRun:
    def test_holds_what_the_design_lists(self, finished):
        assert {path.name for path in finished.iterdir()} == {
            "recipe.toml",
            "environment.json",
            "metrics.jsonl",
            "plan.json",
            "checkpoint",
            "student",
            "analysis",
            "summary.json",
        }
        assert {path.name for path in (finished / "student").iterdir()} == {
            "config.json",
            "model.safetensors",
        }
        assert {path.name for path in (finished / "checkpoint").iterdir()} == {
            "step-00000004",
            "best.safetensors",
        }

    def test_says_where_and_with_what_it_was_made(self, finished):
        environment = json.loads((finished / "environment.json").read_text())
        assert environment["command"].startswith("anykd distill --teacher")
        assert environment["packages"]["torch"] == version("torch")
        assert (environment["ranks"], environment["threads"]) == (1, 1)

    def test_logs_steps_and_epochs(self, finished):
        lines = metrics(finished)
        assert [line["event"] for line in lines] == ["step", "diagnosis", "step", "epoch"]
        assert all(np.isfinite(v) for line in lines for v in line.values() if type(v) is float)

    def test_sums_its_numbers_up(self, finished, teacher):
        found = summary(finished)
        assert found["method"] == finished.name
        assert (found["num_samples"], found["train_samples"]) == (16, 64)
        assert found["epochs"] == found["best_epoch"] == 1
        # The control arm leaves the recipe's teacher alone.
        expected = [] if finished.name == "control" else [summary(teacher)["top1"]]
        assert [one["top1"] for one in found["teachers"]] == expected
        parameters = sum(p.numel() for p in load_student(finished).parameters())
        assert found["parameters"] == parameters

    def test_reports_the_fusion_of_fbt_alone(self, finished):
        assert ("fusion_top1" in summary(finished)) == (finished.name == "fbt")
        assert ("fusion_top1" in metrics(finished)[-1]) == (finished.name == "fbt")

    def test_keeps_the_student_alone(self, finished):
        expected = load_student(finished).state_dict()
        for path in (
            finished / "student/model.safetensors",
            finished / "checkpoint/best.safetensors",
        ):
            assert {k: v.shape for k, v in load_file(path).items()} == {
                k: v.shape for k, v in expected.items()
            }

    def test_is_scored_again_as_it_scored_itself(self, finished):
        done = anykd("evaluate", finished)
        found = summary(finished)
        assert done.code == 0, done.err
        assert done.out.startswith(f"top-1 {found['top1']:.2f} %  top-5 {found['top5']:.2f} %")
        assert f"loss {found['loss']:.4f}  16 images" in done.out

    def test_recipe_that_it_resolved_gives_the_same_run_again(self, finished, tmp_path):
        recipe = finished / "recipe.toml"
        done = anykd("distill", recipe, "--out", tmp_path / "again")
        assert done.code == 0, done.err
        assert (tmp_path / "again" / "recipe.toml").read_text() == recipe.read_text()
        assert_same_run(tmp_path / "again", finished)

    def test_of_another_seed_is_another_run(self, weak, tmp_path):
        done = anykd("distill", weak / "recipe.toml", "--out", tmp_path / "other", "--seed", 1)
        assert done.code == 0, done.err
        assert not torch.equal(weights(tmp_path / "other")["fc.weight"], weights(weak)["fc.weight"])

    def test_leaves_its_teacher_as_it_was(self, teacher, tmp_path):
        before = digest(teacher)
        distill_cnn(tmp_path / "run", teacher, "train.weight_decay=0.5", method="fbt")
        assert digest(teacher) == before

    def test_teaches_by_fbt_in_the_other_order(self, teacher, weak, tmp_path):
        done = anykd(
            *("distill", "--teacher", weak, "--student", "vit_tiny_patch16_224"),
            *("--data", DATA, "--method", "fbt", "--out", tmp_path / "run", *short(VIT)),
        )
        assert done.code == 0, done.err


def load_student(path: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{path / 'student'}", pretrained=True)


class TestAccuracy:
    def test_is_that_of_timm_with_the_students_own_config(self, digits):
        top1 = summary(digits)["top1"]
        assert 15 < top1 < 95  # or a mistake could hide
        found = accuracy_by_timm(digits, DataConfig(source="digits"))
        assert found == pytest.approx(top1, abs=1e-9)

    def test_is_that_of_evaluate(self, digits):
        scores = anykd("evaluate", digits)
        assert scores.out.startswith(f"top-1 {summary(digits)['top1']:.2f} %")
        assert "180 images" in scores.out

    def test_counts_other_images_where_they_are_asked_for(self, digits):
        done = anykd("evaluate", digits, "--set", "data.val_fraction=0.4")
        assert "719 images" in done.out

    def test_of_an_average_of_weights_is_reported_beside_the_last_ones(self, folder, teacher):
        ema = ("train.ema_decay=0.9", "train.peak_lr=0.01")
        path = distill_cnn(folder / "ema", teacher, *ema, epochs=2)
        saved, start = saved_tensors(path), "ema.model."
        kept = {k.removeprefix(start): v for k, v in saved.items() if k.startswith(start)}
        torch.testing.assert_close(weights(path), kept, rtol=0, atol=0, check_stride=False)
        last = saved["module.student.model.fc.weight"]
        assert not torch.equal(weights(path)["fc.weight"], last)
        assert "raw_top1" in summary(path)
        done = anykd("evaluate", path)
        assert done.out.startswith(f"top-1 {summary(path)['top1']:.2f} %")

    def test_reported_is_that_of_the_last_epoch_with_the_best_beside_it(
        self, teacher, tmp_path, monkeypatch
    ):
        tops = iter([40.0, 60.0, 50.0])
        monkeypatch.setattr(
            sys.modules["anykd.experiment.running"], "score_run", lambda parts: {"top1": next(tops)}
        )
        path = distill_cnn(tmp_path / "run", teacher, epochs=3)
        found = summary(path)
        assert (found["top1"], found["best_top1"], found["best_epoch"]) == (50, 60, 2)
        best = load_file(path / "checkpoint" / "best.safetensors")
        assert not torch.equal(best["fc.weight"], weights(path)["fc.weight"])

    def test_of_a_teacher_near_chance_is_warned_of(self, weak, tmp_path):
        assert summary(weak)["top1"] < 50
        done = anykd(
            *("distill", "--teacher", weak, "--student", "resnet18", "--data", DATA),
            *("--method", "kd", "--out", tmp_path / "run", *short(CNN)),
        )
        (finding,) = summary(tmp_path / "run")["findings"]
        assert finding["code"] == "teacher-near-chance"
        assert "where chance is 25.00 %" in finding["message"]
        assert f"warning: {finding['message']}" in done.err


class TestResume:
    @pytest.mark.parametrize("method", ["ofa", "fbt"])
    def test_after_an_interruption_equals_the_run_without_one(
        self, method, teacher, tmp_path, monkeypatch
    ):
        options = ("train.ema_decay=0.9", "train.log_every=1")
        straight = distill_cnn(tmp_path / "a", teacher, *options, method=method, epochs=3)
        log, stopped = Running._log, tmp_path / "b"

        def log_until_the_second_epoch(self: Running, values: dict[str, Any]) -> None:
            log(self, values)
            if values["epoch"] == 1 and values["event"] == "step" and values["step"] == 2:
                raise InterruptionError

        monkeypatch.setattr(Running, "_log", log_until_the_second_epoch)
        with pytest.raises(InterruptionError):
            distill_cnn(stopped, teacher, *options, method=method, epochs=3)
        monkeypatch.setattr(Running, "_log", log)
        assert len(metrics(stopped)) == 4 + 2 + 3 + 1
        assert not (stopped / "summary.json").exists()
        refusal = anykd("distill", "--out", stopped, "--student", "resnet18", "--data", DATA)
        assert "holds an unfinished run" in refusal.err
        assert "--resume" in refusal.err

        done = anykd("distill", "--resume", "--out", stopped)
        assert done.code == 0, done.err
        assert_same_run(stopped, straight)

    def test_of_a_finished_run_is_refused(self, teacher):
        before = digest(teacher)
        done = anykd("train", "--resume", "--out", teacher)
        assert done.code == 2
        assert f"{teacher} is finished, there is nothing to resume" in done.err
        assert digest(teacher) == before

    def test_with_another_student_is_told(self, teacher, tmp_path):
        stopped = tmp_path / "b"
        shutil.copytree(teacher, stopped)
        (stopped / "summary.json").unlink()
        values = read_toml(stopped / "recipe.toml")
        values["student"]["options"]["embed_dim"] = 16
        with pytest.raises(CheckpointError):
            run(Recipe.from_dict(values), stopped, resume=True)

    def test_into_an_existing_run_without_it_is_refused(self, teacher):
        before = digest(teacher)
        done = anykd("train", "--model", "resnet18", "--data", DATA, "--out", teacher)
        assert done.code == 2
        assert f"{teacher} holds a finished run" in done.err
        assert digest(teacher) == before


class TestPython:
    def test_distill_gives_the_run_the_student_and_its_accuracy(self, teacher, tmp_path, capfd):
        result = package.distill(
            teacher=str(teacher),
            student="test_resnet",
            data=DATA,
            method="kd",
            out=tmp_path / "run",
            epochs=1,
            batch_size=16,
            image_size=32,
            temperature=2.0,
            train={"precision": "float32"},
        )
        assert isinstance(result, Result)
        assert result.path == tmp_path / "run"
        assert result.top1 == summary(result.path)["top1"]
        assert capfd.readouterr().out == ""  # standard output belongs to the program
        recipe = read_toml(result.path / "recipe.toml")
        assert recipe["method"]["temperature"] == 2.0
        assert recipe["train"]["epochs"] == 1
        assert recipe["train"]["precision"] == "float32"
        state = {k: v.contiguous() for k, v in result.student.state_dict().items()}
        torch.testing.assert_close(state, weights(result.path), rtol=0, atol=0)

    def test_distill_equals_the_command(self, teacher, tmp_path):
        done = anykd(
            *("distill", "--teacher", teacher, "--student", "test_resnet", "--data", DATA),
            *("--out", tmp_path / "a", *short()),
        )
        assert done.code == 0, done.err
        result = package.distill(
            teacher=teacher,
            student="test_resnet",
            data=DATA,
            out=tmp_path / "b",
            epochs=1,
            batch_size=16,
            image_size=32,
            precision="float32",
        )
        assert_same_run(result.path, tmp_path / "a")

    def test_unknown_option_names_what_is_nearest(self):
        with pytest.raises(ValueError, match="no setting is called 'epoch'") as caught:
            package.distill(student="resnet18", data=DATA, method="control", epoch=1)
        assert "epochs" in getattr(caught.value, "hint", "")


class TestImages:
    def test_of_the_users_own_are_learnt_from_class_folders(self, tmp_path):
        rng = np.random.default_rng(0)
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / name).mkdir(parents=True)
            for i in range(20):
                pixels = rng.integers(0, 100, size=(40, 30 + i, 3)) + 120 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(tmp_path / "images" / name / f"{i}.png")
        out = train_vit(tmp_path / "run", data=str(tmp_path / "images"), epochs=2)
        found = summary(out)
        assert (found["train_samples"], found["num_samples"]) == (36, 4)
        config = json.loads((out / "student" / "config.json").read_text())
        assert config["label_names"] == ["cat", "dog"]
        assert config["num_classes"] == 2
        assert anykd("evaluate", out).out.startswith(f"top-1 {found['top1']:.2f} %")

    def test_of_cifar100_are_learnt_by_a_distilled_student(self, dev_data, tmp_path, monkeypatch):
        def open_with_few_held_out(config: DataConfig) -> DataSplits:
            splits = open_data(config)
            return replace(splits, val=SubsetReader(splits.val, range(300)))

        monkeypatch.setattr(assemble, "open_data", open_with_few_held_out)
        source = f"cifar100:{dev_data / 'cifar100'}"
        limit = ("data.limit=200", "data.workers=0")
        done = anykd(
            *("train", "--model", "vit_tiny_patch16_224", "--data", source),
            *("--out", tmp_path / "teacher", *short(VIT, *limit)),
        )
        assert done.code == 0, done.err
        out = distill_cnn(tmp_path / "run", tmp_path / "teacher", *limit, method="fbt", data=source)
        found = summary(out)
        assert (found["train_samples"], found["num_samples"]) == (200, 300)
        assert 0 <= found["top1"] <= found["top5"] < 100
