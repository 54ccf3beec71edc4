"""Several methods and several teachers in one recipe, from a command to what it reports."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_data_config
from torch import Tensor

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
)
from tests.experiment.runs import CNN, DATA, anykd, distill_cnn, saved_tensors, short, train_vit

RECIPE = """
image_size = 32
[student]
name = "resnet18"
options = {{ layers = [1, 1, 1, 1], channels = [8, 16, 24, 32] }}
[[teacher]]
name = "{near}"
[[teacher]]
name = "{far}"
weight = 0.5
[[method]]
name = "ofa"
teachers = [1]
[[method]]
name = "fitnet"
weight = 0.5
kd_weight = 0.0
[[method]]
name = "crd"
num_negatives = 16
[data]
source = "synthetic:4x16"
[train]
epochs = 1
batch_size = 16
log_every = 1
precision = "float32"
"""
CNN_OPTIONS = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
OTHER_VIT = "student.options={patch_size=16,embed_dim=24,depth=4,num_heads=2}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def near(folder) -> Path:
    """A teacher of the data's classes."""
    return train_vit(folder / "near")


@pytest.fixture(scope="module")
def far(folder) -> Path:
    """A teacher of other classes, another width and larger images."""
    done = anykd(
        *("train", "--model", "vit_tiny_patch16_224", "--data", "synthetic:3x16"),
        *("--out", folder / "far", *short(OTHER_VIT), "--image-size", 48),
    )
    assert done.code == 0, done.err
    return folder / "far"


@pytest.fixture(scope="module")
def recipe(folder, near, far) -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(near=near, far=far))
    return path


@pytest.fixture(scope="module")
def finished(folder, recipe) -> Path:
    return distill(folder / "several", recipe)


def distill(out: Path, recipe: Path, *sets: str) -> Path:
    flags = [part for value in sets for part in ("--set", value)]
    done = anykd("distill", recipe, "--out", out, *flags)
    assert done.code == 0, done.err
    return out


ABOUT = ("event", "epoch", "step", "lr", "grad_norm", "bad_steps")
"""What a step's line says beside its loss and terms."""


class TestRun:
    def test_adds_the_terms_of_every_method_and_teacher(self, finished):
        first = metrics(finished)[0]
        terms = {k: v for k, v in first.items() if k not in ABOUT}
        loss = terms.pop("loss")
        stages = range(1, 5)
        assert set(terms) == {
            *("task", "ofa_logits_teacher1", "crd_teacher1", "crd_teacher2"),
            *(f"ofa_stage{stage}_teacher1" for stage in stages),
            *(f"hint_stage{stage}_teacher{teacher}" for stage in stages for teacher in (1, 2)),
        }
        assert sum(terms.values()) == pytest.approx(loss, rel=1e-5)

    @pytest.mark.parametrize(
        ("override", "changed", "factor"),
        [
            ("method.2.weight=1.0", "hint_", 2),
            ("method.2.weight=0.25", "hint_", 0.5),
            ("teacher.2.weight=0.25", "_teacher2", 0.5),
        ],
    )
    def test_weighs_the_terms_of_one_method_or_teacher_alone(
        self, finished, recipe, tmp_path, override, changed, factor
    ):
        before = metrics(finished)[0]
        after = metrics(distill(tmp_path / "run", recipe, override))[0]
        for name in before.keys() - {"event", "loss", "grad_norm"}:
            expected = before[name] * (factor if changed in name else 1)
            assert after[name] == pytest.approx(expected, rel=1e-6), name

    def test_scores_the_teacher_of_its_classes_and_names_the_other(self, finished, near, far):
        first, second = summary(finished)["teachers"]
        assert first["top1"] == summary(near)["top1"]
        assert second == {
            "name": "vit_tiny_patch16_224",
            "source": str(far),
            "classes": "none needed",
        }

    def test_sums_up_all_methods_by_their_names(self, finished):
        assert summary(finished)["method"] == "ofa+fitnet+crd"

    def test_keeps_the_student_alone_and_once(self, finished):
        val = open_data(DataConfig(source=DATA)).val
        right = (classes_by_timm(finished, val) == torch.tensor(labels_of(val))).sum().item()
        assert summary(finished)["top1"] == 100 * right / 16
        saved = [name for name in saved_tensors(finished) if name.startswith("module.")]
        names = [name for name in saved if name.endswith("fc.weight")]
        assert names == ["module.student.model.fc.weight"]

    def test_takes_the_size_of_a_memory_from_the_data(self, finished):
        memories = [v for k, v in saved_tensors(finished).items() if k.endswith("_memory")]
        assert [tuple(memory.shape) for memory in memories] == [(64, 128)] * 4
        written = tomllib.loads((finished / "recipe.toml").read_text())
        assert "num_samples" not in written["method"][2]

    def test_recipe_that_it_resolved_gives_the_same_run_again(self, finished, tmp_path):
        again = distill(tmp_path / "again", finished / "recipe.toml")
        assert (again / "recipe.toml").read_text() == (finished / "recipe.toml").read_text()
        assert_same_run(again, finished)

    def test_is_scored_again_as_it_scored_itself(self, finished):
        done = anykd("evaluate", finished)
        assert done.code == 0, done.err
        assert f"loss {summary(finished)['loss']:.4f}  16 images" in done.out

    def test_resumed_equals_the_run_without_an_interruption(self, recipe, tmp_path, monkeypatch):
        straight = distill(tmp_path / "a", recipe, "train.epochs=3")
        stopped = tmp_path / "b"
        interrupt(monkeypatch, epoch=1, step=2)
        with pytest.raises(InterruptionError):
            distill(stopped, recipe, "train.epochs=3")
        monkeypatch.undo()
        assert len(metrics(stopped)) == 4 + 2 + 3 + 1
        done = anykd("distill", "--resume", "--out", stopped)
        assert done.code == 0, done.err
        assert_same_run(stopped, straight)
        states = [saved_tensors(path) for path in (straight, stopped)]
        assert any(name.endswith("student_memory") for name in states[0])
        torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


class TestTeachersOfOtherClasses:
    def test_are_refused_where_class_scores_are_compared(self, far, tmp_path):
        done = anykd(
            *("distill", "--teacher", far, "--student", "resnet18", "--data", DATA),
            *("--method", "kd", "--out", tmp_path / "run", *short(CNN)),
        )
        assert done.code == 2
        assert f"error: {far} knows 3 classes, {DATA} has 4\n" in done.err
        assert "--teacher-head probe" in done.err
        assert "or let only methods that compare features learn from it, such as rsd" in done.err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("method", "sets"), [("rsd", ()), ("fitnet", ("method.kd_weight=0",)), ("crd", ())]
    )
    def test_teach_their_features(self, far, tmp_path, method, sets):
        path = distill_cnn(tmp_path / "run", far, *sets, "method.task_weight=1", method=method)
        found = summary(path)
        (teacher,) = found["teachers"]
        assert (teacher["source"], teacher["classes"]) == (str(far), "none needed")
        assert "top1" not in teacher
        assert found["num_samples"] == 16
        assert 0 <= found["top1"] <= 100
        assert found["findings"] == []

    def test_leave_the_classes_of_unlabelled_images_to_the_teacher_that_is_compared(
        self, recipe, near, far, tmp_path
    ):
        """The agreement, too, is with that one, on images of the largest of all sizes."""
        val = open_data(DataConfig(source="synthetic:4x40")).val
        flat = tmp_path / "flat"
        flat.mkdir()
        for i in range(len(val)):
            val[i].image.save(flat / f"{i}.png")
        run = distill(
            tmp_path / "run",
            recipe,
            f"teacher=[{{name='{far}'}},{{name='{near}'}}]",
            "method=[{name='rsd',teachers=[1],task_weight=0},{name='kd',teachers=[2]}]",
            f"data={{source='{flat}',labels=false,workers=0,val_fraction=0.5}}",
            *("train.batch_size=4", "train.epochs=4", "train.peak_lr=0.01", "augment.preset=none"),
        )
        held_out = open_data(DataConfig(source=str(flat), labels=False, val_fraction=0.5)).val
        chosen, expected = (classes_of_larger_images(path, held_out, 48) for path in (run, near))
        assert len(chosen.unique()) > 1
        agreement = 100 * (chosen == expected).sum().item() / len(held_out)
        assert 0 < agreement < 100
        assert summary(run)["agreement"] == agreement
        assert summary(run)["num_samples"] == 20


class TestRefusals:
    @pytest.mark.parametrize(
        ("override", "message", "hint"),
        [
            (
                "method.1.teachers=[3]",
                "ofa wants to learn from teacher 3, and there are 2",
                "teachers are counted from 1",
            ),
            (
                "method=[{name='ofa',teachers=[1]},{name='dkd',teachers=[1]}]",
                "no method learns from teacher 2",
                "remove it, or change `teachers`",
            ),
            (
                "method.1.teachers=[2]",
                "knows 3 classes, synthetic:4x16 has 4",
                "--teacher-head probe",
            ),
            (
                "method.2.kd_weight=1",
                "knows 3 classes, synthetic:4x16 has 4",
                "--teacher-head probe",
            ),
            (
                "method.3.num_samples=63",
                "num_samples is 63, but there are 64 training images",
                "it is taken from the data",
            ),
            (
                "data.labels=false",
                "needs labels and the data has none",
                "set method.task_weight = 0",
            ),
            ("method.weight=1", "there are 3 [[method]] tables", "such as method.1.weight"),
            ("method.2.wieght=1", "method.2.wieght is no setting", "did you mean weight"),
        ],
    )
    def test_say_what_does_not_fit_before_anything_is_written(
        self, recipe, tmp_path, override, message, hint
    ):
        done = anykd("distill", recipe, "--out", tmp_path / "run", "--set", override)
        assert done.code == 2, done.err
        error, advice = done.err.splitlines()
        assert message in error
        assert hint in advice
        assert not (tmp_path / "run").exists()

    def test_several_teachers_give_way_to_the_one_of_a_flag(self, recipe, far, tmp_path):
        out = tmp_path / "run"
        done = anykd("distill", recipe, "--teacher", far, "--method", "rsd", "--out", out)
        assert done.code == 0, done.err
        written = tomllib.loads((out / "recipe.toml").read_text())
        assert (written["teacher"]["name"], written["method"]["name"]) == (str(far), "rsd")


class TestPython:
    def test_distill_takes_lists_and_equals_the_command(self, finished, near, far, tmp_path):
        result = package.distill(
            student={"name": "resnet18", "options": CNN_OPTIONS},
            teacher=[near, {"name": str(far), "weight": 0.5}],
            method=[
                {"name": "ofa", "teachers": [1]},
                {"name": "fitnet", "weight": 0.5, "kd_weight": 0},
                {"name": "crd", "num_negatives": 16},
            ],
            data=DATA,
            out=tmp_path / "run",
            image_size=32,
            epochs=1,
            batch_size=16,
            log_every=1,
            precision="float32",
        )
        assert_same_run(result.path, finished)
        assert result.top1 == summary(finished)["top1"]
        assert (result.path / "recipe.toml").read_text() == (finished / "recipe.toml").read_text()

    def test_distill_learns_from_one_method_by_a_table(self, near, tmp_path):
        result = package.distill(
            student={"name": "resnet18", "options": CNN_OPTIONS},
            teacher=near,
            method=[{"name": "kd", "temperature": 2.0, "weight": 0.5}],
            data=DATA,
            out=tmp_path / "run",
            image_size=32,
            epochs=1,
            batch_size=16,
        )
        assert result.summary["method"] == "kd"
        written = tomllib.loads((result.path / "recipe.toml").read_text())
        assert (written["method"]["temperature"], written["method"]["weight"]) == (2.0, 0.5)
        assert {"task", "kd"} <= metrics(result.path)[0].keys()


def classes_of_larger_images(path: Path, reader: Reader, size: int) -> Tensor:
    """The class that a run's student chooses for images which it has to make smaller itself."""
    model = timm.create_model(f"local-dir:{path / 'student'}", pretrained=True).eval()
    config = resolve_data_config(model=model)
    transform: Any = create_transform(
        (3, size, size), interpolation="bicubic", crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1)
    )
    images = torch.stack([transform(reader[i].image) for i in range(len(reader))])
    own_size = config["input_size"][1:]
    images = F.interpolate(images, own_size, mode="bicubic", antialias=True)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model((images - mean) / std).argmax(dim=1)
