"""Findings about teachers: from right answers, and from real teachers on real images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anykd.data.reader import ArrayReader
from anykd.experiment import load_recipe
from anykd.experiment.assemble import Parts, assemble
from anykd.experiment.plan.check import check
from anykd.experiment.plan.finding import Finding
from anykd.experiment.plan.findings.teacher import (
    ENOUGH,
    larger_student,
    near_chance,
    wiser_student,
    wrong_normalisation,
)
from anykd.experiment.plan.judge import Judge, sample_size
from anykd.experiment.plan.make import preview
from anykd.experiment.plan.models import describe_models
from anykd.experiment.plan.normalisation import COMMON
from anykd.models import create_staged
from tests.experiment.runs import CNN, VIT, anykd, short


def hits(right: int, count: int) -> Tensor:
    return torch.arange(count) < right


class TestNearChance:
    def test_with_enough_images_is_an_error(self):
        (finding,) = near_chance("t", hits(30, ENOUGH), 4)
        assert (finding.severity, finding.code) == ("error", "teacher-near-chance")
        assert "30.00 % on 100 held-out images, where chance is 25.00 %" in finding.message

    def test_with_few_images_is_a_warning(self):
        (finding,) = near_chance("t", hits(7, 16), 4)
        assert finding.severity == "warning"

    def test_of_a_run_is_a_warning_all_the_same(self):
        (finding,) = near_chance("t", hits(30, ENOUGH), 4, of_a_run=True)
        assert finding.severity == "warning"

    def test_of_many_classes_is_an_error_without_a_right_answer(self):
        assert [f.severity for f in near_chance("t", hits(0, 128), 1000)] == ["error"]
        assert not list(near_chance("t", hits(1, 128), 1000))

    def test_but_clearly_above_it_is_a_warning(self):
        assert [f.severity for f in near_chance("t", hits(45, 100), 4)] == ["warning"]

    def test_is_left_behind_at_twice_chance(self):
        assert not list(near_chance("t", hits(50, 100), 4))


class TestStudentAboveTeacher:
    def test_is_told(self):
        (finding,) = wiser_student("t", hits(50, 100), hits(60, 100))
        assert (finding.severity, finding.code) == ("warning", "student-above-teacher")
        assert "top-1 of 60.00 %" in finding.message
        assert "teacher t has 50.00 %" in finding.message

    def test_by_chance_is_not_told(self):
        assert not list(wiser_student("t", hits(50, 100), hits(58, 100)))
        assert not list(wiser_student("t", hits(60, 100), hits(50, 100)))


class TestNormalisation:
    def test_under_which_accuracy_jumps_is_told_with_its_setting(self):
        others = {COMMON[1]: hits(60, 100), COMMON[3]: hits(80, 100)}
        (finding,) = wrong_normalisation("t", hits(50, 100), others)
        assert (finding.severity, finding.code) == ("error", "wrong-normalisation")
        assert "50.00 % with its mean and std, and 80.00 % with values in [0, 255]" in (
            finding.message
        )
        assert "teacher.mean = 0 and teacher.std = 0.003922" in finding.remedy

    def test_that_is_a_little_better_is_not_told(self):
        assert not list(wrong_normalisation("t", hits(500, 1000), {COMMON[1]: hits(590, 1000)}))
        assert not list(wrong_normalisation("t", hits(6, 16), {COMMON[1]: hits(13, 16)}))


class TestLargerStudent:
    def test_is_a_note(self):
        (finding,) = larger_student(300, 200)
        assert (finding.severity, finding.code) == ("note", "student-larger")
        assert "1.5 times" in finding.message
        assert not list(larger_student(200, 200))


def test_slow_models_are_judged_by_fewer_images():
    cpu = torch.device("cpu")
    sizes = [sample_size(flops, cpu) for flops in (10**6, 4 * 10**9, 10**11)]
    assert sizes == [128, 50, 16]
    assert sample_size(10**11, torch.device("cuda")) == 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module")
def teacher(folder) -> Path:
    """A ViT that tells four classes of waves apart, on 64 held-out images."""
    done = anykd(
        *("train", "--model", "vit_tiny_patch16_224", "--data", "synthetic:4x256"),
        *("-o", folder / "teacher", *short(VIT)),
    )
    assert done.code == 0, done.err
    return folder / "teacher"


def write_classes(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


def parts_of(teacher: Path, *sets: str, student: str = "resnet18", data: str = "synthetic:4x256"):
    flags = {
        "teacher.name": str(teacher),
        "student.name": student,
        "data.source": data,
        "method.name": "kd",
        "image_size": 32,
        "train.batch_size": 16,
        "train.epochs": 2,
    }
    model = () if Path(student).is_dir() else (CNN,)
    recipe = load_recipe(None, flags, ["train.precision=float32", *model, *sets])
    return assemble(recipe, torch.device("cpu"))


def found(parts: Parts) -> dict[str, Finding]:
    return {finding.code: finding for finding in check(parts, describe_models(parts))}


class TestRealTeacher:
    def test_that_is_good_gives_no_finding(self, teacher):
        assert found(parts_of(teacher)) == {}

    def test_seen_another_way_answers_as_one_that_is_normalised_so(self, teacher):
        parts = parts_of(teacher)
        other = COMMON[0]
        model = parts_of(
            teacher, f"teacher.mean={list(other.mean)}", f"teacher.std={list(other.std)}"
        )
        positions = tuple(range(64))
        seen = Judge(parts, positions).hits(parts.teachers[0], seen_as=other)
        own = Judge(model, positions).hits(model.teachers[0])
        assert torch.equal(seen, own)

    def test_that_is_normalised_wrongly_is_told_what_is_right(self, teacher):
        parts = parts_of(teacher, "teacher.mean=0", "teacher.std=0.00392")
        finding = found(parts)["wrong-normalisation"]
        assert finding.severity == "error"
        # With what the remedy says it is as good as with its own.
        mean, std = finding.remedy.removeprefix("if it was trained so, set ").split(" and ")
        mended = parts_of(teacher, mean.replace(" ", ""), std.replace(" ", ""))
        assert found(mended) == {}

    def test_of_random_weights_is_near_chance(self, teacher, folder):
        parts = parts_of(teacher)
        with torch.no_grad():
            for parameter in parts.teachers[0].model.parameters():
                parameter.normal_(std=0.02)
        finding = found(parts)["teacher-near-chance"]
        assert "16 held-out" not in finding.message

    def test_whose_scores_are_not_finite_is_told(self, teacher):
        parts = parts_of(teacher)
        with torch.no_grad():
            parts.teachers[0].model.model.head.bias[0] = torch.nan
        assert found(parts)["teacher-not-finite"].severity == "error"

    def test_below_a_pretrained_student_is_told(self, teacher):
        parts = parts_of(teacher, student=str(teacher))
        assert found(parts) == {}
        with torch.no_grad():
            parts.teachers[0].model.model.head.bias[0] += 100
        assert "student-above-teacher" in found(parts)

    def test_below_a_fresh_student_is_not_asked_for(self, teacher):
        parts = parts_of(teacher)
        with torch.no_grad():
            parts.teachers[0].model.model.head.bias[0] += 100
        assert "student-above-teacher" not in found(parts)

    def test_of_fewer_parameters_is_told(self, teacher):
        wide = "student.options={layers=[1,1,1,1],channels=[32,32,64,64]}"
        assert "student-larger" in found(parts_of(teacher, wide))

    def test_with_a_head_that_no_weights_were_loaded_for_is_told(self, teacher):
        parts = parts_of(teacher, "teacher.options.num_classes=5", data="synthetic:5x64")
        finding = found(parts)["random-classifier"]
        assert finding.severity == "error"
        assert "score 4 classes and hold no classifier" in finding.message
        assert "--teacher-head probe" in finding.remedy

    def test_of_more_classes_shows_which_are_taken(self, teacher, tmp_path):
        names = create_staged(str(teacher)).class_names
        write_classes(tmp_path / "two", names[3], names[1])
        parts = parts_of(teacher, data=str(tmp_path / "two"))
        facts = describe_models(parts)[1]
        expected = ((names[1], 1, names[1]), (names[3], 3, names[3]))
        assert facts.class_map == expected
        plan = preview(parts)
        line = f"teacher's classes: {names[1]} ← 1 {names[1]}; {names[3]} ← 3 {names[3]}"
        assert line in plan.text(width=200)
        assert line in plan.short_text(width=200)

    def test_of_as_many_classes_under_other_names_is_told(self, teacher, tmp_path):
        write_classes(tmp_path / "trees", "apple", "birch", "cedar", "elder")
        finding = found(parts_of(teacher, data=str(tmp_path / "trees")))["teacher-classes"]
        assert finding.severity == "warning"
        assert "apple" in finding.message

    def test_that_is_not_compared_is_not_judged(self, teacher):
        parts = parts_of(teacher, "method.name=rsd", data="synthetic:5x64")
        assert found(parts) == {}


class TestLookingChangesNothing:
    def test_of_models_data_and_generators(self, teacher, folder):
        # A pretrained student with batch norms, whose statistics move where it is not evaluated.
        cnn = ("train", "--model", "resnet18", "--data", "synthetic:4x16", "-o", folder / "cnn")
        assert anykd(*cnn, *short(CNN)).code == 0
        parts = parts_of(teacher, "teacher.mean=0.3", student=str(folder / "cnn"))
        models = (parts.method, parts.teachers[0].model)
        before = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
        modes = [part.training for model in models for part in model.modules()]
        state = torch.get_rng_state()
        found(parts)
        after = [model.state_dict() for model in models]
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert [part.training for model in models for part in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)


class TestWholeCheck:
    def test_finds_what_is_amiss_with_data_and_settings(self, teacher):
        sets = (
            *("train.ema_decay=0.9999", "train.ema_warmup=false", "augment.crop_pct=0.8"),
            *("train.batch_size=8", "method.name=rkd", "image_size=32", "teacher.image_size=128"),
        )
        assert set(found(parts_of(teacher, *sets))) == {
            *("slow-average", "small-batch", "crop-cuts-borders", "images-enlarged"),
        }

    def test_puts_errors_first(self, teacher):
        parts = parts_of(teacher, "teacher.mean=0", "teacher.std=0.00392", "augment.crop_pct=0.8")
        severities = [f.severity for f in check(parts, describe_models(parts))]
        assert severities == sorted(severities, key=("error", "warning", "note").index)
        assert severities[0] == "error"

    def test_does_not_judge_by_labels_out_of_range(self, teacher):
        parts = parts_of(teacher)
        four = [4, *(parts.data.val.labels or [])[1:]]
        images = np.zeros((len(four), 8, 8, 3), dtype=np.uint8)
        data = replace(parts.data, val=ArrayReader(images, four))
        assert "labels-out-of-range" in found(replace(parts, data=data))
