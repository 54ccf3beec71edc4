"""What runs do with their plan: its first lines, stopping at errors, and keeping what was found."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import rmtree

import pytest

import anykd as package
from anykd.errors import AnykdError
from tests.experiment.results import InterruptionError, assert_same_run, interrupt, summary
from tests.experiment.runs import CNN, VIT, anykd, short

DATA = "synthetic:4x256"
# The ViT was trained with a mean and deviation of 0.5.
WRONG = ("teacher.mean=0", "teacher.std=0.00392")
CONSOLE_SCRIPT = Path(sys.executable).parent / "anykd"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("gate") / "teacher"
    done = anykd(
        *("train", "--model", "vit_tiny_patch16_224", "--data", DATA, "-o", out, *short(VIT))
    )
    assert done.code == 0, done.err
    assert done.err.startswith("vit_tiny_patch16_224 (attention, 57.8 k) learns from labels")
    return out


def command(out: Path, teacher: Path, *sets: str, epochs: int = 1) -> list[object]:
    return [
        *("distill", "--teacher", teacher, "--student", "resnet18", "--data", DATA),
        *("--method", "ofa", "--out", out, *short(CNN, "data.limit=64", *sets, epochs=epochs)),
    ]


def kept(path: Path) -> list[tuple[str, str]]:
    return [(found["severity"], found["code"]) for found in summary(path)["findings"]]


class TestFirstLines:
    def test_of_a_run_say_who_teaches_what_and_where_they_meet(self, teacher, tmp_path):
        done = anykd(*command(tmp_path / "run", teacher))
        assert done.code == 0, done.err
        shown = done.err.partition(f"teacher {teacher}: top-1")[0].splitlines()
        text = " ".join(" ".join(shown).split())
        assert text.startswith(f"resnet18 (conv, 45.3 k) learns from {teacher} (attention, 57.8 k)")
        assert "map branch: 3 separable blocks to 32, classifier" in text
        assert "images/s" not in text

    def test_are_kept_in_the_run(self, teacher, tmp_path):
        anykd(*command(tmp_path / "run", teacher))
        values = json.loads((tmp_path / "run" / "plan.json").read_text())
        assert [model["role"] for model in values["models"]] == ["student", "teacher"]
        assert len(values["joins"]) == 5
        assert values["cost"] is None


class TestError:
    def test_stops_a_run_before_anything_is_written(self, teacher, tmp_path):
        done = anykd(*command(tmp_path / "run", teacher, *WRONG))
        assert done.code == 2
        assert done.out == ""
        *_, error, hint = done.err.splitlines()
        assert error.startswith(f"error: teacher {teacher} has a top-1 of")
        assert hint.startswith("hint: if it was trained so, set teacher.mean = ")
        assert hint.endswith("; or go on all the same by --force")
        assert not (tmp_path / "run").exists()

    def test_is_kept_in_a_run_that_is_forced(self, teacher, tmp_path):
        done = anykd(*command(tmp_path / "run", teacher, *WRONG), "--force")
        assert done.code == 0, done.err
        assert kept(tmp_path / "run") == [("error", "wrong-normalisation")]

    def test_does_not_stop_what_was_forced_once_it_goes_on(self, teacher, tmp_path, monkeypatch):
        straight, stopped = tmp_path / "a", tmp_path / "b"
        every = (*WRONG, "train.log_every=1")
        anykd(*command(straight, teacher, *every, epochs=2), "--force")
        with monkeypatch.context() as patch:
            interrupt(patch, epoch=1, step=0)
            with pytest.raises(InterruptionError):
                anykd(*command(stopped, teacher, *every, epochs=2), "--force")
        done = anykd("distill", "--resume", "--out", stopped)
        assert done.code == 0, done.err
        assert_same_run(stopped, straight)
        assert kept(stopped) == [("error", "wrong-normalisation")]

    def test_stops_what_goes_on_without_ever_having_been_planned(self, teacher, tmp_path):
        run = tmp_path / "run"
        done = anykd(*command(run, teacher, *WRONG), "--force")
        assert done.code == 0, done.err
        # As it is left by a run that was stopped while its teacher was finetuned.
        for path in run.iterdir():
            if path.name != "recipe.toml":
                rmtree(path) if path.is_dir() else path.unlink()
        (run / "teacher").mkdir()
        stopped = anykd("distill", "--resume", "--out", run)
        assert stopped.code == 2
        assert "has a top-1 of" in stopped.err.splitlines()[-2]
        forced = anykd("distill", "--resume", "--out", run, "--force")
        assert forced.code == 0, forced.err

    def test_stops_the_library_too(self, teacher, tmp_path):
        options = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
        with pytest.raises(AnykdError, match=r"with its mean and std, and 100\.00 %"):
            package.distill(
                student={"name": "resnet18", "options": options},
                teacher={"name": str(teacher), "mean": 0.0, "std": 0.00392},
                data=DATA,
                out=tmp_path / "run",
                image_size=32,
                batch_size=16,
                epochs=1,
            )
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("forced", [False, True])
    def test_of_training_without_a_teacher_is_one_too(self, forced, tmp_path):
        folder = tmp_path / "images"
        for name in ("cat", "dog"):
            for number in range(8):
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / f"{number}.png").write_bytes(b"no image")
        done = anykd(
            *("train", "--model", "resnet18", "--data", folder, "-o", tmp_path / "run"),
            *("--epochs", 1, "--batch-size", 4, "--image-size", 32, "--set", CNN),
            *(["--force"] if forced else []),
        )
        assert done.code == 2
        # No force helps: training would break off at the first of them.
        assert "images that were tried cannot be read" in done.err.splitlines()[-2]
        assert "--force" not in done.err
        assert not (tmp_path / "run").exists()

    @pytest.mark.distributed
    def test_stops_all_ranks(self, teacher, tmp_path):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", "2", CONSOLE_SCRIPT),
                *map(str, command(tmp_path / "run", teacher, *WRONG)),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode != 0
        assert done.stderr.count("learns from") == 1
        assert "go on all the same by --force" in done.stderr
        assert not (tmp_path / "run").exists()


class TestWarning:
    def test_is_shown_with_its_remedy_and_kept(self, teacher, tmp_path):
        done = anykd(*command(tmp_path / "run", teacher, "augment.crop_pct=0.875"))
        assert done.code == 0, done.err
        assert kept(tmp_path / "run") == [("warning", "crop-cuts-borders")]
        assert "\nwarning: augment.crop_pct 0.875 cuts 23% off images of 64 px" in done.err
        assert "\n  hint: set augment.crop_pct = 1\n" in done.err

    def test_is_kept_where_a_note_is_not(self, teacher, tmp_path):
        wide = "student.options={layers=[1,1,1,1],channels=[16,32,32,48]}"
        done = anykd(*command(tmp_path / "run", teacher, wide))
        assert "\nnote: the student has" in done.err
        assert kept(tmp_path / "run") == []
        values = json.loads((tmp_path / "run" / "plan.json").read_text())
        assert [finding["code"] for finding in values["findings"]] == ["student-larger"]
