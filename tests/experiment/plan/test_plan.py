"""The plan as it is read: laid out, as JSON, from the command line and from the library."""

import json
import time
from pathlib import Path

import pytest
import timm
import torch

import anykd as package
from anykd.errors import RecipeError
from anykd.experiment.plan import Plan
from tests.experiment.runs import CNN, DATA, anykd, short, train_vit


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return train_vit(tmp_path_factory.mktemp("plan") / "teacher")


@pytest.fixture(scope="module")
def plan(teacher) -> Plan:
    """FBT with all there is to show."""
    options = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
    return package.plan(
        student={"name": "resnet18", "options": options},
        teacher=teacher,
        data=DATA,
        method="fbt",
        image_size=32,
        batch_size=16,
        epochs=3,
        steps=1,
    )


def flags(teacher: Path, method: str = "fbt") -> list[object]:
    return [
        *("--teacher", teacher, "--student", "resnet18", "--data", DATA, "--method", method),
        *short(CNN),
    ]


class TestText:
    def test_fits_80_columns(self, plan):
        assert max(map(len, plan.text().splitlines())) <= 80

    @pytest.mark.parametrize("width", [60, 100, 160])
    def test_fits_other_widths(self, plan, width):
        assert max(map(len, plan.text(width=width).splitlines())) <= width

    def test_is_plain_without_color(self, plan):
        assert "\x1b" not in plan.text()
        assert "\x1b[" in plan.text(color=True)

    def test_says_who_teaches_what_and_what_it_costs(self, plan):
        text = plan.text(width=160)
        for said in (
            *("resnet18 (conv, 45.3 k) learns from", "(attention, 57.8 k) by fbt"),
            *("64 images of 4 classes", "FLOPs an image", "not named", "0.485, 0.456, 0.406"),
            "fusion: student's stages 1-3 → L2G (patch embedding + Swin block) → 32x4x4 → "
            "teacher's stage 4 and head",
            *("student 45.3 k + l2g 16.6 k", "the student alone: 45.3 k parameters", "images/s"),
            *("of it in the teacher's forward pass", "an epoch", "evaluation not counted"),
            *("64 images x 3 views", "a cache could take the teacher's place; only its tail"),
            "findings: none",
        ):
            assert said in text, said

    def test_has_a_row_for_every_place(self, plan):
        lines = plan.text(width=160).splitlines()
        for row in (
            ["1", "8x8x8", "32x4x4"],
            ["2", "16x4x4", "32x4x4"],
            ["4", "32x1x1", "32x4x4"],
            ["logits", "4", "4"],
        ):
            assert any(line.split()[:3] == row for line in lines), row


class TestJson:
    def test_has_the_documented_keys(self, plan):
        values = json.loads(json.dumps(plan.to_dict()))
        assert set(values) == {
            *("method", "data", "models", "joins", "trains", "keeps_bytes", "cache", "cost"),
            "findings",
        }
        guide = (Path(__file__).parents[3] / "docs" / "guides" / "plan.md").read_text()
        for part in (values, values["models"][0], values["joins"][0], values["cost"]):
            assert [key for key in part if f"`{key}`" not in guide] == []
        assert [key for key in values["cache"] if f"`{key}`" not in guide] == []

    def test_counts_right(self, plan):
        student, teacher = plan.models
        by_timm = timm.create_model(
            "resnet18", num_classes=4, layers=[1, 1, 1, 1], channels=[8, 16, 24, 32]
        )
        assert student.parameters == sum(p.numel() for p in by_timm.parameters())
        # Multiply-adds of the ViT by hand: embedding, 4 blocks of qkv, attention, output and MLP
        # over 17 tokens, and the head.
        width, tokens = 32, 17
        block = tokens * width * width * (3 + 1 + 8) + 2 * tokens * tokens * width
        assert teacher.flops == 2 * (16 * 3 * 64 * width + 4 * block + width * 4)
        assert plan.keeps_bytes >= 4 * student.parameters
        own = sum(count for name, count in plan.trains.items() if name != "student")
        assert own == sum(join.parameters for join in plan.joins)


class TestCommand:
    def test_prints_a_plan_and_writes_nothing(self, teacher, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        done = anykd("plan", *flags(teacher), "--steps", "1")
        assert done.code == 0, done.err
        assert "learns from" in done.out
        assert "images/s" in done.out
        assert done.err == ""
        assert not list(tmp_path.iterdir())

    def test_prints_the_same_as_json(self, teacher):
        done = anykd("plan", *flags(teacher), "--steps", "1", "--json")
        values = json.loads(done.out)
        assert values["method"] == "fbt"
        assert values["cost"]["measured_steps"] == 1

    def test_without_steps_measures_nothing(self, teacher):
        values = json.loads(anykd("plan", *flags(teacher), "--steps", "0", "--json").out)
        assert values["cost"] is None
        assert values["joins"]

    def test_of_ofa_is_what_is_planned_without_a_method(self, teacher):
        given = [flag for flag in flags(teacher) if flag not in ("--method", "fbt")]
        values = json.loads(anykd("plan", *given, "--steps", "0", "--json").out)
        assert values["method"] == "ofa"

    def test_ends_with_2_where_an_error_was_found(self, teacher):
        wrong = ("--set", "teacher.mean=0", "--set", "teacher.std=0.00392")
        data = ("--data", "synthetic:4x256")
        done = anykd("plan", *flags(teacher), *data, *wrong)
        assert done.code == 2
        assert "error: teacher" in done.out
        assert "[wrong-normalisation]" in done.out
        assert done.err == ""

    def test_says_what_is_impossible_without_a_traceback(self, teacher):
        done = anykd("plan", *flags(teacher), "--data", "digits", "--json")
        assert done.code == 2
        (finding,) = json.loads(done.out)["findings"]
        assert (finding["severity"], finding["code"]) == ("error", "impossible")
        assert "knows 4 classes" in finding["message"]
        assert "--teacher-head" in finding["remedy"]
        shown = anykd("plan", *flags(teacher), "--data", "digits")
        assert (shown.code, shown.err) == (2, "")
        assert shown.out.startswith("error: ")

    def test_with_too_few_images_for_a_batch_tells_all_the_rest(self, teacher):
        few = ("--data", "synthetic:4x16", "--batch-size", 128, "--json")
        done = anykd("plan", *flags(teacher), *few)
        plan = json.loads(done.out)
        assert done.code == 2
        assert "do not fill one batch of 128" in plan["findings"][0]["message"]
        assert [model["role"] for model in plan["models"]] == ["student", "teacher"]
        assert plan["joins"]
        assert plan["cost"] is None

    def test_answers_in_half_a_minute_for_small_models(self, teacher):
        start = time.process_time()
        anykd("plan", *flags(teacher, "pat"))
        assert time.process_time() - start < 30

    def test_shows_several_teachers_and_methods(self, teacher):
        several = ("--teacher", teacher, *flags(teacher, "kd+fitnet"))
        done = anykd("plan", *several, "--steps", "1")
        assert done.code == 0, done.err
        for said in ("teacher 2", "KD from teacher 1", "FitNet from teacher 2"):
            assert said in done.out

    def test_of_a_teacher_whose_head_is_yet_to_be_fitted_does_not_judge_it(self, teacher):
        done = anykd(
            *("plan", *flags(teacher), "--data", "digits", "--teacher-head", "probe"),
            *("--steps", "1"),
        )
        assert done.code == 0, done.out
        assert "by a linear probe, fitted before training" in " ".join(done.out.split())


class TestLibrary:
    def test_takes_what_distill_takes(self, plan):
        assert isinstance(plan, package.Plan)
        with pytest.raises(RecipeError, match="epohcs"):
            package.plan(student="resnet18", data=DATA, method="control", epohcs=1)

    def test_gives_the_impossible_as_a_finding(self):
        made = package.plan(student="resnet18", data=DATA, method="kd", steps=0)
        assert [finding.code for finding in made.errors] == ["impossible"]
        assert made.text().startswith("error: ")

    def test_leaves_the_generators_alone(self, teacher):
        # Building models draws from them; with the same seed before, the same comes after.
        def drawn(steps: int) -> torch.Tensor:
            torch.manual_seed(3)
            package.plan(
                student="resnet18",
                data=DATA,
                method="control",
                steps=steps,
                batch_size=16,
                image_size=32,
            )
            return torch.rand(2)

        assert torch.equal(drawn(0), drawn(1))
