"""What a run finds out about its student and teachers, and any two models about each other."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anykd.analysis import linear_cka
from anykd.data import DataConfig, DataSplits, open_data
from anykd.data.reader import ArrayReader
from anykd.errors import ModelError
from anykd.experiment.analysis import of_run
from anykd.experiment.analysis.images import Shown
from anykd.experiment.analysis.layers import ModelLayers
from anykd.models import create_staged
from anykd.recipe import Recipe
from tests.experiment.cache.making import cache
from tests.experiment.results import (
    InterruptionError,
    assert_same_run,
    interrupt,
    summary,
)
from tests.experiment.runs import CNN, anykd, distill_cnn, short, train_vit

DATA = "synthetic:4x64"
SETS = ("train.peak_lr=0.002", "augment.preset=none")
LAYERS = ["stage 1", "stage 2", "stage 3", "stage 4", "pooled"]


def analysis(path: Path) -> dict[str, Any]:
    return json.loads((path / "analysis" / "analysis.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def teacher(folder) -> Path:
    return train_vit(folder / "teacher", data=DATA)


@pytest.fixture(scope="module")
def kd(folder, teacher) -> Path:
    return distill_cnn(folder / "kd", teacher, *SETS, data=DATA)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """The held-out images at the models' size, and their labels."""
    held_out = open_data(DataConfig(source=DATA)).val
    pixels = [held_out[i].image.resize((32, 32), Image.Resampling.BICUBIC) for i in range(64)]
    stacked = torch.from_numpy(np.stack([np.array(image) for image in pixels]))
    return stacked.permute(0, 3, 1, 2) / 255, torch.tensor(held_out.labels)


@torch.no_grad()
def features_of(path: Path, images: Tensor) -> Any:
    staged = create_staged(str(path), pretrained=True)
    return staged.eval()(images)


class TestFindsOfStudentAndTeacher:
    def test_their_accuracy_is_that_of_the_summary(self, kd):
        found, said = analysis(kd), summary(kd)
        assert found["num_samples"] == said["num_samples"] == 64
        assert found["student"]["top1"] == pytest.approx(said["top1"])
        assert found["student"]["nll"] == pytest.approx(said["loss"], rel=1e-5)
        assert found["teachers"][0]["top1"] == pytest.approx(said["teachers"][0]["top1"])
        assert found["teachers"][0]["source"] == said["teachers"][0]["source"]
        assert found["classes"] == ["pattern 0", "pattern 1", "pattern 2", "pattern 3"]

    def test_scores_are_those_of_the_saved_student(self, kd, teacher, images):
        pixels, labels = images
        student, own = (features_of(path, pixels).logits for path in (kd, teacher))
        probabilities, chosen = student.double().softmax(dim=1).numpy(), student.argmax(dim=1)
        found = analysis(kd)
        assert len(chosen.unique()) > 1  # or a mistake could hide
        assert found["student"]["top1"] == pytest.approx(100 * accuracy_score(labels, chosen))
        assert found["student"]["nll"] == pytest.approx(log_loss(labels, probabilities), rel=1e-4)
        dense = np.zeros((4, 4))
        for label, taken_for, count in found["confusion"]:
            dense[label, taken_for] = count
        np.testing.assert_array_equal(dense, confusion_matrix(labels, chosen, labels=range(4)))
        agreed = found["teachers"][0]["agreement"]
        assert agreed["top1"] == pytest.approx(100 * accuracy_score(own.argmax(dim=1), chosen))
        log_p, log_q = own.double().log_softmax(dim=1), student.double().log_softmax(dim=1)
        expected = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean().item()
        assert agreed["kl"] == pytest.approx(expected, rel=1e-4)
        curve = found["student"]["reliability"]
        assert sum(one["count"] for one in curve) == 64
        right = sum(one["count"] * one["accuracy"] for one in curve if one["count"])
        assert right == pytest.approx(64 * found["student"]["top1"] / 100)

    def test_cka_is_that_of_the_saved_student(self, kd, teacher, images):
        # One batch of all 64 images, so their order is nothing to it.
        student, own = (features_of(path, images[0]) for path in (kd, teacher))
        (found,) = analysis(kd)["cka"]
        expected = [
            [
                linear_cka(x.flatten(1), y.flatten(1), unbiased=True).item()
                for y in (*own.stages, own.pooled)
            ]
            for x in (*student.stages, student.pooled)
        ]
        np.testing.assert_allclose(found["after"], expected, atol=2e-4)
        assert found["student_layers"] == found["teacher_layers"] == LAYERS
        assert found["num_samples"] == 64
        assert not np.allclose(found["before"], found["after"], atol=0.01)

    def test_cka_before_training_is_that_of_the_student_as_it_was_made(self, kd, teacher, images):
        torch.manual_seed(0)  # the recipe's
        options: Any = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
        staged = create_staged("resnet18", num_classes=4, image_size=32, **options).eval()
        own = features_of(teacher, images[0])
        with torch.no_grad():
            expected = linear_cka(staged(images[0]).pooled, own.pooled, unbiased=True)
        found = analysis(kd)["cka"][0]["before"][-1][-1]
        assert found == pytest.approx(expected.item(), abs=2e-4)

    def test_examples_are_images_that_the_two_see_differently(self, kd):
        held_out, found = open_data(DataConfig(source=DATA)).val, analysis(kd)
        apart = found["num_samples"] * (1 - found["teachers"][0]["agreement"]["top1"] / 100)
        assert len(found["examples"]) == min(24, round(apart)) > 4
        for example in found["examples"]:
            assert example["student"] != example["teacher"]
            assert example["label"] == held_out[example["index"]].label
            with Image.open(kd / "analysis" / example["file"]) as image:
                assert max(image.size) <= 96
                np.testing.assert_array_equal(image, held_out[example["index"]].image)
        # The first of them are of as many classes as there are.
        classes = {example["label"] for example in found["examples"]}
        first = [example["label"] for example in found["examples"][: len(classes)]]
        assert set(first) == classes

    def test_cost_is_that_of_the_plain_model(self, kd):
        model = timm.create_model(f"local-dir:{kd / 'student'}", pretrained=True).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 32, 32))
        found = analysis(kd)["cost"]["student"]
        assert found["flops"] == counter.get_total_flops()
        assert found["parameters"] == summary(kd)["parameters"]
        assert found["image_size"] == [32, 32]
        assert found["latency_ms"] > 0

    def test_ranks_lie_between_one_and_the_width(self, kd):
        found = analysis(kd)
        for model, widths in (
            (found["student"], (8, 16, 24, 32, 32)),
            (found["teachers"][0], 5 * (32,)),
        ):
            assert list(model["effective_rank"]) == LAYERS
            for rank, width in zip(model["effective_rank"].values(), widths, strict=True):
                assert 1 <= rank <= width


class TestChangesNothing:
    def test_a_run_trains_to_the_same_bits_without(self, kd, folder, teacher):
        off = distill_cnn(folder / "off", teacher, *SETS, "analysis.num_samples=0", data=DATA)
        assert_same_run(off, kd)
        assert not (off / "analysis").exists()

    def test_nor_one_with_dropout_an_average_and_another_method(self, teacher, tmp_path):
        sets = (*SETS, "student.options.drop_rate=0.2", "train.ema_decay=0.9")
        for name, num in (("on", 2000), ("off", 0)):
            more = (*sets, f"analysis.num_samples={num}")
            distill_cnn(tmp_path / name, teacher, *more, method="fbt", data="synthetic:4x16")
        assert_same_run(tmp_path / "on", tmp_path / "off")
        # It is the average that is scored, saved and analysed.
        found, said = analysis(tmp_path / "on")["student"], summary(tmp_path / "on")
        assert found["nll"] == pytest.approx(said["loss"], rel=1e-6)

    def test_a_run_that_goes_on_still_knows_what_was_before(self, teacher, tmp_path, monkeypatch):
        given = {"data": "synthetic:4x16", "epochs": 2}
        whole = distill_cnn(tmp_path / "whole", teacher, *SETS, "train.log_every=1", **given)
        interrupt(monkeypatch, epoch=1, step=0)
        with pytest.raises(InterruptionError):
            distill_cnn(tmp_path / "cut", teacher, *SETS, "train.log_every=1", **given)
        monkeypatch.undo()
        assert not (tmp_path / "cut" / "analysis" / "analysis.json").exists()
        assert anykd("distill", "--resume", "--out", tmp_path / "cut").code == 0
        found, expected = analysis(tmp_path / "cut"), analysis(whole)
        del found["cost"], expected["cost"]
        assert found == expected
        assert found["cka"][0]["before"] is not None

    def test_a_failure_of_it_loses_no_run(self, teacher, tmp_path, monkeypatch):
        def fail(*given: Any, **more: Any) -> None:
            raise RuntimeError("odd\nmodel")

        monkeypatch.setattr(of_run, "collect", fail)
        done = anykd(
            *("distill", "--teacher", teacher, "--student", "resnet18", "--data", "synthetic:4x16"),
            *("--method", "kd", "--out", tmp_path / "run", *short(CNN)),
        )
        assert done.code == 0
        assert done.err.count("analysis failed (RuntimeError: odd model); the run") == 2
        assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
        assert summary(tmp_path / "run")["top1"] >= 0
        assert not (tmp_path / "run" / "analysis").exists()


class TestOtherRuns:
    def test_a_control_is_compared_with_nobody(self, teacher):
        found = analysis(teacher)
        assert (found["teachers"], found["cka"], found["examples"]) == ([], [], [])
        assert found["student"]["top1"] == pytest.approx(summary(teacher)["top1"])
        assert list((teacher / "analysis").iterdir()) != []

    def test_only_so_many_images_and_examples_are_taken(self, teacher, tmp_path):
        sets = (*SETS, "analysis.num_samples=20", "analysis.num_examples=3")
        found = analysis(distill_cnn(tmp_path / "run", teacher, *sets, data=DATA))
        assert found["num_samples"] == found["cka"][0]["num_samples"] == 20
        assert (
            len(found["examples"]) == len(list((tmp_path / "run/analysis/examples").iterdir())) == 3
        )

    def test_without_labels_models_are_compared_and_not_scored(
        self, teacher, write_images, tmp_path
    ):
        data = write_images("pictures", monday=20, tuesday=20)
        sets = (
            "data.labels=false",
            "method.task_weight=0",
            "data.workers=0",
            "data.val_fraction=0.4",
        )
        run = distill_cnn(tmp_path / "run", teacher, *sets, data=str(data / "pictures"))
        found = analysis(run)
        for model in (found["student"], found["teachers"][0]):
            assert [model[key] for key in ("top1", "ece", "nll", "per_class")] == [None] * 4
        assert found["confusion"] is None
        assert found["classes"] == ["pattern 0", "pattern 1", "pattern 2", "pattern 3"]
        assert found["teachers"][0]["agreement"]["top1"] == pytest.approx(summary(run)["agreement"])
        assert all(example["label"] is None for example in found["examples"])
        assert np.isfinite(found["cka"][0]["after"]).all()

    def test_a_student_without_classes_has_features_all_the_same(self, teacher, tmp_path):
        sets = ("data.labels=false", "method.task_weight=0")
        run = distill_cnn(tmp_path / "run", teacher, *sets, method="rsd", data="synthetic:4x16")
        found = analysis(run)
        assert found["student"]["top1"] is None
        assert found["teachers"][0]["agreement"] is None
        assert found["teachers"][0]["top1"] == pytest.approx(100, abs=100)
        assert len(found["cka"][0]["after"]) == 5

    def test_a_teacher_whose_answers_are_stored_is_run(self, tmp_path):
        own = train_vit(tmp_path / "teacher", data="synthetic:4x12")
        stored = cache(tmp_path / "cache", own)
        sets = (f"teacher.cache='{stored}'", "data.workers=0")
        run = distill_cnn(tmp_path / "run", own, *sets, data="synthetic:4x12")
        found = analysis(run)
        assert found["teachers"][0]["top1"] == pytest.approx(summary(run)["teachers"][0]["top1"])
        assert found["cka"][0]["before"] != found["cka"][0]["after"]


class TestAnalyze:
    def test_a_run_and_its_teacher_are_as_the_run_found(self, kd, teacher, tmp_path):
        done = anykd("analyze", kd, teacher, "--out", tmp_path / "out")
        assert done.code == 0, done.err
        found, expected = (
            json.loads((tmp_path / "out/cka.json").read_text()),
            analysis(kd)["cka"][0],
        )
        np.testing.assert_allclose(found["cka"], expected["after"], atol=2e-5)
        assert found["before"] == expected["before"]
        assert (found["rows"], found["columns"]) == (LAYERS, LAYERS)
        assert f"{found['cka'][0][0]:.3f}" in done.out
        assert f"before {kd} was trained" in done.out
        lines = list(csv.reader((tmp_path / "out/cka.csv").read_text().splitlines()))
        assert lines[0] == ["", *LAYERS]
        assert [float(cell) for cell in lines[1][1:]] == found["cka"][0]
        assert "<svg" in (tmp_path / "out/cka.svg").read_text()
        with Image.open(tmp_path / "out/cka.png") as image:
            assert min(image.size) > 200

    def test_a_model_is_like_itself(self, teacher):
        done = anykd("analyze", teacher, teacher, "--layers", "blocks", "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["rows"] == [*(f"blocks.{number}" for number in range(4)), "pooled"]
        np.testing.assert_allclose(np.diagonal(found["cka"]), 1, atol=1e-6)
        np.testing.assert_allclose(found["cka"], np.transpose(found["cka"]), atol=1e-6)
        assert found["before"] is None

    def test_both_may_see_larger_images(self, kd, teacher):
        flags = ("--data", "synthetic:4x32", "--image-size", 64, "--num-samples", 20, "--json")
        done = anykd("analyze", kd, teacher, *flags)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["num_samples"] == 20
        assert not np.allclose(found["cka"], analysis(kd)["cka"][0]["after"], atol=0.01)

    def test_blocks_of_a_model_are_what_they_give(self):
        staged = create_staged("vit_tiny_patch16_224", image_size=32, depth=4, embed_dim=48)
        staged.eval()
        layers = ModelLayers(staged, "blocks")
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            found, features = layers(images), staged(images)
        tokens = torch.cat([features.prefixes[3], features.stages[3].flatten(2).mT], dim=1)
        torch.testing.assert_close(found[3], tokens)
        torch.testing.assert_close(found[4], features.pooled)
        hooks = [module for module in staged.modules() if module._forward_hooks]
        assert hooks == []

    def test_what_cannot_be_compared_is_said(self, kd, tmp_path):
        done = anykd("analyze", kd, kd, "--layers", "heads")
        assert (done.code, done.err) == (2, "error: --layers heads is none of stages, blocks\n")
        done = anykd("analyze", kd, "resnt18", "--data", DATA)
        assert done.code == 2
        assert "resnet18" in done.err
        with pytest.raises(ModelError, match="resnet18 has no blocks that could be compared"):
            ModelLayers(create_staged("torchvision:resnet18", image_size=32), "blocks")
        file = tmp_path / "file"
        file.touch()
        done = anykd("analyze", kd, kd, "--out", file)
        assert done.code == 2
        assert file.read_text() == ""


class TestEvaluate:
    def test_says_what_the_run_found(self, kd, teacher):
        done = anykd("evaluate", kd, "--json")
        assert done.code == 0, done.err
        found, expected = json.loads(done.out), analysis(kd)
        assert found["top1"] == pytest.approx(summary(kd)["top1"])
        assert found["ece"] == pytest.approx(expected["student"]["ece"], abs=1e-5)
        assert found["per_class"] == expected["student"]["per_class"]
        assert found["teacher"] == str(teacher)
        agreed = expected["teachers"][0]["agreement"]
        assert found["agreement"] == pytest.approx(agreed["top1"])
        assert found["kl"] == pytest.approx(agreed["kl"], rel=1e-4)
        assert found["cost"]["flops"] == expected["cost"]["student"]["flops"]

    def test_prints_it_in_lines(self, kd, teacher):
        out = anykd("evaluate", kd).out.splitlines()
        said, worst = summary(kd), min(analysis(kd)["student"]["per_class"])
        assert out[0].startswith(f"top-1 {said['top1']:.2f} %  top-5 {said['top5']:.2f} %")
        assert out[1].startswith(f"calibration error {analysis(kd)['student']['ece']:.4f}")
        assert out[2].startswith(f"agreement with {teacher} ")
        assert f" {worst:.1f} %, " in out[3]
        assert out[4].startswith("one image of 32x32 px: ")

    def test_compares_with_the_model_that_is_asked_for(self, kd, teacher):
        with_itself = json.loads(anykd("evaluate", kd, "--teacher", kd, "--json").out)
        assert (with_itself["agreement"], with_itself["teacher"]) == (100, str(kd))
        assert with_itself["kl"] == pytest.approx(0, abs=1e-9)
        alone = json.loads(anykd("evaluate", teacher, "--json").out)
        assert (alone["agreement"], alone["kl"], alone["teacher"]) == (None, None, None)

    def test_a_teacher_that_cannot_be_had_is_said(self, kd):
        done = anykd("evaluate", kd, "--teacher", "resnt18")
        assert done.code == 2
        assert "error: no model is called 'resnt18'" in done.err


def test_images_are_mixed_and_the_same_each_time():
    reader = ArrayReader(np.zeros((90, 4, 4, 3), np.uint8), sorted([0, 1, 2] * 30))
    data = DataSplits("sorted", ("a", "b", "c"), reader, reader)
    recipe = Recipe.from_dict({"student": {"name": "resnet18"}, "data": {"source": "digits"}})
    first, again = (Shown(data, recipe, 15).positions for _ in range(2))
    assert first == again
    assert {reader.labels[position] for position in first} == {0, 1, 2}
    assert sorted(Shown(data, recipe, 500).positions) == list(range(90))
