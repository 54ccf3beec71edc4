"""Training on images without labels, from a command to what it reports."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import anykd as package
from anykd.data import DataConfig, Reader, open_data
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
from tests.experiment.runs import CNN, DATA, Outcome, anykd, distill_cnn, short, train_vit

UNLABELLED = ("data.labels=false", "method.task_weight=0", "data.workers=0")
# Students that agree with their teacher on some images, and not on others.
LEARNING = ("data.val_fraction=0.4", "train.peak_lr=0.01", "augment.preset=none")


def save_images(reader: Reader, positions: range, folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in positions:
        reader[i].image.save(folder / f"{i}.png")


def try_to_distill(out: Path, teacher: Path, data: Path, *sets: str, method: str) -> Outcome:
    return anykd(
        *("distill", "--teacher", teacher, "--student", "resnet18", "--data", data),
        *("--method", method, "--out", out, *short(CNN, *sets)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def teacher(folder) -> Path:
    return train_vit(folder / "teacher")


@pytest.fixture(scope="module")
def flat(folder) -> Path:
    """64 images of four patterns, in folders that say nothing of them."""
    reader = open_data(DataConfig(source=DATA)).train
    save_images(reader, range(32), folder / "flat" / "monday")
    save_images(reader, range(32, 64), folder / "flat" / "monday" / "evening")
    return folder / "flat"


@pytest.fixture(scope="module")
def mixed(folder) -> Path:
    """The same images in train/, and class folders of others in val/."""
    splits = open_data(DataConfig(source=DATA))
    save_images(splits.train, range(64), folder / "mixed" / "train")
    for label in range(4):
        save_images(splits.val, range(label, 16, 4), folder / "mixed" / "val" / f"wave {label}")
    return folder / "mixed"


@pytest.fixture(scope="module", params=["kd", "fbt", "ofa"])
def finished(request, folder, teacher, flat) -> Path:
    """A finished run on the flat folder."""
    return distill_cnn(
        folder / request.param,
        teacher,
        *UNLABELLED,
        *LEARNING,
        method=request.param,
        data=str(flat),
        epochs=3,
    )


@pytest.fixture(scope="module")
def unscored(folder, teacher, flat) -> Path:
    """A finished run whose student has no classes."""
    return distill_cnn(folder / "rsd", teacher, *UNLABELLED, method="rsd", data=str(flat), epochs=2)


class TestAgreement:
    def test_is_the_share_of_images_that_student_and_teacher_see_alike(
        self, finished, teacher, flat
    ):
        held_out = open_data(DataConfig(source=str(flat), labels=False, val_fraction=0.4)).val
        chosen, by_teacher = (classes_by_timm(path, held_out) for path in (finished, teacher))
        assert len(chosen.unique()) > 1  # or a mistake could hide
        expected = 100 * (chosen == by_teacher).sum().item() / len(held_out)
        assert 0 < expected < 100
        assert summary(finished)["agreement"] == expected
        assert summary(finished)["num_samples"] == len(held_out) == 26

    def test_takes_the_place_of_top1_in_all_that_a_run_writes(self, finished):
        found = summary(finished)
        own = {"fusion_agreement"} if finished.name == "fbt" else set()
        scores = {"agreement", "num_samples"} | own
        assert set(found) == scores | {
            *("method", "student", "teachers", "data", "seed", "best_agreement", "best_epoch"),
            *("epochs", "train_samples", "images_per_step", "parameters", "precision"),
            *("bad_steps", "bad_images", "seconds", "findings", "working"),
        }
        assert found["findings"] == []
        epochs = [line for line in metrics(finished) if line["event"] == "epoch"]
        assert [set(line) for line in epochs] == [scores | {"event", "epoch"}] * 3
        assert {key: epochs[-1][key] for key in scores} == {key: found[key] for key in scores}
        best = max(line["agreement"] for line in epochs)
        assert found["best_agreement"] == best == epochs[found["best_epoch"] - 1]["agreement"]

    def test_goes_with_a_teacher_that_is_named_and_not_scored(self, finished, teacher):
        named = {"name": "vit_tiny_patch16_224", "source": str(teacher), "classes": "own"}
        assert summary(finished)["teachers"] == [named]

    def test_goes_without_a_task_term(self, finished):
        assert not any("task" in line for line in metrics(finished))

    def test_is_of_a_student_with_the_teachers_classes_and_its_names_for_them(self, finished):
        config = json.loads((finished / "student" / "config.json").read_text())
        assert config["num_classes"] == 4
        assert config["label_names"] == ["pattern 0", "pattern 1", "pattern 2", "pattern 3"]

    def test_is_said_where_a_top1_would_be(self, teacher, flat, tmp_path):
        done = try_to_distill(tmp_path / "run", teacher, flat, *UNLABELLED, method="kd")
        assert done.code == 0, done.err
        found = f"{summary(tmp_path / 'run')['agreement']:.2f} %"
        assert done.out == f"agreement with the teacher {found}  {tmp_path / 'run'}\n"
        assert f"teacher {teacher}: not scored\n" in done.err
        assert f"epoch 1/1: agreement {found}\n" in done.err
        assert "top-1" not in done.out + done.err

    def test_of_the_last_weights_is_reported_beside_that_of_their_average(
        self, teacher, flat, tmp_path
    ):
        ema = (*UNLABELLED, "train.ema_decay=0.9")
        path = distill_cnn(tmp_path / "run", teacher, *ema, data=str(flat))
        assert {"agreement", "raw_agreement"} <= set(summary(path))

    def test_decides_which_weights_are_the_best(self, teacher, flat, tmp_path, monkeypatch):
        found = iter([40.0, 60.0, 50.0])
        running = sys.modules["anykd.experiment.running"]
        monkeypatch.setattr(running, "score_run", lambda _: {"agreement": next(found)})
        path = distill_cnn(tmp_path / "run", teacher, *UNLABELLED, data=str(flat), epochs=3)
        numbers = summary(path)
        assert (numbers["agreement"], numbers["best_agreement"]) == (50, 60)
        assert numbers["best_epoch"] == 2
        best = load_file(path / "checkpoint" / "best.safetensors")
        assert not torch.equal(best["fc.weight"], weights(path)["fc.weight"])


class TestLabelsToEvaluateOn:
    def test_give_a_top1(self, teacher, mixed, tmp_path):
        options = (*UNLABELLED, *LEARNING)
        path = distill_cnn(tmp_path / "run", teacher, *options, data=str(mixed), epochs=3)
        val = open_data(DataConfig(source=str(mixed), labels=False)).val
        chosen = classes_by_timm(path, val)
        assert len(chosen.unique()) > 1
        expected = 100 * (chosen == torch.tensor(labels_of(val))).sum().item() / 16
        assert summary(path)["top1"] == expected
        assert 0 <= summary(path)["agreement"] <= 100
        assert summary(path)["teachers"][0]["top1"] == summary(teacher)["top1"]
        config = json.loads((path / "student" / "config.json").read_text())
        assert config["label_names"] == ["wave 0", "wave 1", "wave 2", "wave 3"]
        done = anykd("evaluate", path)
        assert done.out.startswith(f"top-1 {expected:.2f} %")

    def test_are_kept_by_data_that_has_them(self, teacher, tmp_path):
        """Where no term reads labels, the student is the one that training with them gives."""
        runs = [
            distill_cnn(tmp_path / labels, teacher, *UNLABELLED, f"data.labels={labels}")
            for labels in ("true", "false")
        ]
        torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=0, atol=0)
        assert metrics(runs[0]) == metrics(runs[1])
        assert summary(runs[1])["num_samples"] == 16


class TestNotScored:
    def test_is_a_student_whose_classifier_nothing_trains(self, unscored):
        found = summary(unscored)
        assert not {key for key in found if key.endswith(("top1", "agreement", "epoch"))}
        assert "num_samples" not in found
        (finding,) = found["findings"]
        assert finding["code"] == "untrained-classifier"
        epochs = [line for line in metrics(unscored) if line["event"] == "epoch"]
        assert epochs == [{"event": "epoch", "epoch": 0}, {"event": "epoch", "epoch": 1}]

    def test_is_said(self, teacher, mixed, tmp_path):
        """Also where the held-out images have labels: chance would be reported."""
        done = try_to_distill(tmp_path / "run", teacher, mixed, *UNLABELLED, method="rsd")
        assert done.code == 0, done.err
        assert done.out.startswith("trained, and not scored")
        assert "warning: no term trains the student's classifier" in done.err
        assert "epoch 1/1: done\n" in done.err
        assert "top1" not in summary(tmp_path / "run")

    def test_is_a_student_that_timm_loads_for_its_features(self, unscored):
        model = timm.create_model(f"local-dir:{unscored / 'student'}", pretrained=True).eval()
        assert model.num_classes == 0
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        torch.testing.assert_close(state, weights(unscored), rtol=0, atol=0)

    def test_has_its_last_weights_for_its_best(self, unscored):
        best = load_file(unscored / "checkpoint" / "best.safetensors")
        torch.testing.assert_close(best, weights(unscored), rtol=0, atol=0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("method", "options", "reader"),
        [
            ("kd", (), "KD"),
            ("rsd", (), "RSD"),
            ("dkd", ("method.task_weight=0",), "DKD"),
            ("ofa", ("method.task_weight=0", "method.gamma=1.4"), "OFA"),
            ("fbt", ("method.task_weight=0", "method.gamma=1.4"), "FBT"),
        ],
    )
    def test_a_method_that_reads_labels_says_so_before_anything_is_written(
        self, teacher, flat, tmp_path, method, options, reader
    ):
        sets = ("data.labels=false", "student.options.num_classes=4", *options)
        done = try_to_distill(tmp_path / "run", teacher, flat, *sets, method=method)
        assert done.code == 2
        assert f"error: {reader} needs labels and the data has none\n" in done.err
        assert ("set method.task_weight = 0" in done.err) == (not options)
        assert "such as kd" in done.err
        assert not (tmp_path / "run").exists()

    def test_a_folder_without_classes_tells_how_to_do_without_labels(self, teacher, flat, tmp_path):
        done = try_to_distill(tmp_path / "run", teacher, flat, method="kd")
        assert done.code == 2
        assert "data.labels = false, and method.task_weight = 0" in done.err

    def test_a_student_without_classes_is_not_compared(self, teacher, flat, tmp_path):
        sets = (*UNLABELLED, "student.options.num_classes=0")
        done = try_to_distill(tmp_path / "run", teacher, flat, *sets, method="kd")
        assert done.code == 2
        assert "KD compares class scores" in done.err
        assert not (tmp_path / "run").exists()


class TestEvaluate:
    def test_of_images_without_labels_is_refused(self, finished):
        done = anykd("evaluate", finished)
        assert done.code == 2
        assert "error: the held-out images of flat have no labels to be scored by" in done.err
        assert "hint: give --data SPEC with labels" in done.err

    def test_takes_other_data_that_has_labels(self, finished):
        done = anykd("evaluate", finished, "--data", DATA)
        assert done.code == 0, done.err
        val = open_data(DataConfig(source=DATA)).val
        right = (classes_by_timm(finished, val) == torch.tensor(labels_of(val))).sum().item()
        assert done.out.startswith(f"top-1 {100 * right / 16:.2f} %")
        assert "16 images" in done.out

    def test_takes_class_folders_that_are_not_divided(self, finished, mixed):
        done = anykd("evaluate", finished, "--data", mixed / "val", "--set", "data.val_fraction=.5")
        assert done.code == 0, done.err
        assert "8 images" in done.out

    def test_takes_a_divided_folder_whose_training_images_have_no_labels(self, finished, mixed):
        done = anykd("evaluate", finished, "--data", mixed, "--set", "data.labels=false")
        assert done.code == 0, done.err
        assert "16 images" in done.out

    def test_refuses_other_classes(self, finished):
        done = anykd("evaluate", finished, "--data", "synthetic:6x4")
        assert done.code == 2
        assert f"error: {finished} knows 4 classes, synthetic:6x4 has 6\n" in done.err

    def test_refuses_a_student_without_classes(self, unscored):
        done = anykd("evaluate", unscored, "--data", DATA)
        assert done.code == 2
        assert f"error: {unscored} has no classifier to be scored\n" in done.err
        assert "train one on its features: anykd train --model" in done.err


class TestResume:
    @pytest.mark.parametrize("method", ["kd", "rsd"])
    def test_of_a_run_without_labels_equals_the_run_without_an_interruption(
        self, method, teacher, flat, tmp_path, monkeypatch
    ):
        options: dict[str, Any] = {"method": method, "data": str(flat), "epochs": 3}
        sets = (*UNLABELLED, "train.log_every=1", "train.ema_decay=0.9")
        straight = distill_cnn(tmp_path / "a", teacher, *sets, **options)
        interrupt(monkeypatch, epoch=1, step=1)
        with pytest.raises(InterruptionError):
            distill_cnn(tmp_path / "b", teacher, *sets, **options)
        monkeypatch.undo()
        done = anykd("distill", "--resume", "--out", tmp_path / "b")
        assert done.code == 0, done.err
        assert_same_run(tmp_path / "b", straight)


class TestPython:
    @pytest.mark.parametrize("method", ["kd", "rsd"])
    def test_distill_gives_no_top1(self, teacher, flat, tmp_path, method):
        result = package.distill(
            teacher=teacher,
            student="test_resnet",
            data=flat,
            method=method,
            out=tmp_path / "run",
            labels=False,
            task_weight=0,
            workers=0,
            epochs=1,
            batch_size=16,
            image_size=32,
        )
        assert result.top1 is None
        assert ("agreement" in result.summary) == (method == "kd")
