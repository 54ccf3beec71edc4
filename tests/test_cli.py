"""Commands as they are typed, in this process but for two."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import typer

from anykd import __version__
from anykd.cli import app
from anykd.methods import METHODS
from tests.experiment.runs import CNN, DATA, anykd, short, train_vit

ROOT: Any = typer.main.get_command(app)
CONSOLE_SCRIPT = Path(sys.executable).parent / "anykd"
COMMANDS = (
    *("demo", "distill", "plan", "train", "evaluate", "analyze", "report", "export"),
    *("cache", "models", "methods"),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A run that knows four classes."""
    return train_vit(tmp_path_factory.mktemp("cli") / "teacher")


@pytest.fixture(autouse=True)
def offline_in_an_empty_folder(tmp_path, monkeypatch) -> None:
    """No network, no cached weights, and a folder in which anything written is seen."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def refused(*arguments: object) -> tuple[str, str]:
    """The error and the hint of a command that the user can mend, which leaves nothing behind."""
    before = sorted(Path().rglob("*"))
    done = anykd(*arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    assert sorted(Path().rglob("*")) == before
    first, *rest = done.err.splitlines()
    assert first.startswith("error: ")
    assert len(rest) <= 1
    assert all(line.startswith("hint: ") for line in rest)
    return first.removeprefix("error: "), "".join(rest).removeprefix("hint: ")


def every_command(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and those below it, each with the words that are typed for it."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from every_command(below, *words, name)


class TestHelp:
    def test_comes_in_half_a_second_without_torch(self):
        code = (
            "import sys, time; start = time.perf_counter(); sys.argv = ['anykd', '--help']\n"
            "from anykd.cli import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "assert not {'torch', 'timm', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
            "print(time.process_time(), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        # Time of the processor, the interpreter's start included: others may be busy here.
        assert float(done.stderr) < 0.5
        assert "distill" in done.stdout

    @pytest.mark.parametrize("arguments", [[], ["--help"]])
    def test_lists_the_commands(self, arguments):
        shown = anykd(*arguments)
        assert [name for name in COMMANDS if f" {name} " not in shown.out + shown.err] == []

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_a_command_says_what_it_does(self, command):
        done = anykd(command, "--help")
        assert done.code == 0
        assert f"anykd {command}" in done.out

    @pytest.mark.parametrize(
        ("words", "command"),
        [pytest.param(*found, id=" ".join(found[0])) for found in every_command(ROOT)],
    )
    def test_says_all_that_was_written(self, words, command, monkeypatch):
        # What stands in brackets is markup to the library that lays the text out.
        monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 500)
        shown = " ".join(anykd(*words, "--help").out.replace("│", " ").split())
        for part in (command, *command.params):
            text = " ".join((getattr(part, "help", None) or "").split()).replace("\\[", "[")
            assert text in shown
            default = getattr(part, "show_default", None)
            if isinstance(default, str):
                assert f"[default: ({default})]" in shown

    def test_version_is_that_of_the_package(self):
        assert anykd("--version").out == f"anykd {__version__}\n"

    def test_unknown_command_names_what_is_nearest(self):
        done = anykd("distil")
        assert done.code == 2
        assert "distill" in done.err


class TestLists:
    def test_methods_are_listed_with_a_sentence_each(self):
        lines = anykd("methods").out.splitlines()
        assert [line.split()[0] for line in lines] == list(METHODS)
        assert all(line.endswith(".") for line in lines)

    @pytest.mark.parametrize("name", METHODS)
    def test_a_method_is_shown_with_every_field(self, name):
        shown = anykd("methods", name).out
        assert f'[method] name = "{name}"' in shown
        for key in METHODS[name].Config.model_fields:
            assert f"\n{key} = " in shown

    def test_models_are_found_by_pattern(self):
        assert anykd("models", "*swin_pico*").out == "swin_pico_patch4_window7_224\n"
        assert len(anykd("models").out.splitlines()) > 1000

    def test_unknown_method_names_what_is_nearest(self):
        assert refused("methods", "offa") == ("no method is called 'offa'", "did you mean ofa?")

    def test_pattern_without_models_is_told(self):
        assert refused("models", "*nonsense*")[0] == "no model matches '*nonsense*'"

    @pytest.mark.parametrize("name", ["resnet188", "torchvision:resnet188", "nowhere.py:make"])
    def test_name_that_is_no_model_is_told(self, name):
        error, _ = refused("models", name)
        assert name.partition(":")[0] in error or name.partition(":")[2] in error

    def test_models_of_other_sources_are_found_by_pattern(self):
        assert "torchvision:resnet18" in anykd("models", "torchvision:resnet*").out.splitlines()

    def test_models_are_shown_at_an_image_size(self):
        done = anykd("models", "test_resnet", "--image-size", 32, "--set", "stem=small")
        name, count, _, kind, _, *stages = done.out.split()
        assert (name, count, kind) == ("test_resnet", "0.5", "conv")
        assert [stage.partition("@")[2] for stage in stages] == ["32", "16", "8", "4"]

    def test_a_size_that_a_model_does_not_take_is_told(self):
        error, hint = refused("models", "test_vit", "--image-size", 33)
        assert "do not fill images of 33 x 33 px" in error
        assert "patch_size" in hint
        several = anykd("models", "test_vit*", "--image-size", 33)
        assert several.code == 0
        assert len(several.out.splitlines()) > 1


def distill(**changes: object) -> list[object]:
    """A command that would work, with some flags changed or, where None, left out."""
    flags = {"student": "resnet18", "data": DATA, "method": "kd", "out": "run"} | changes
    given = [(f"--{name}", value) for name, value in flags.items() if value is not None]
    return ["distill", *(part for flag in given for part in flag), *short(CNN)]


class TestBadInput:
    def test_misspelt_student_names_what_is_nearest(self, teacher):
        error, hint = refused(*distill(teacher=teacher, student="resnet81"))
        assert error == "no model is called 'resnet81', and no run directory is there"
        assert "resnet18" in hint

    def test_misspelt_teacher_names_what_is_nearest(self):
        error, hint = refused(*distill(teacher="convnext_tinny"))
        assert error.startswith("no model is called 'convnext_tinny'")
        assert "convnext_tiny" in hint

    def test_misspelt_tag_names_what_is_nearest(self):
        error, hint = refused(*distill(teacher="resnet18.a1_in2k"))
        assert error == "resnet18 has no weights 'a1_in2k'"
        assert "resnet18.a1_in1k" in hint

    def test_misspelt_method_names_what_is_nearest(self, teacher):
        error, hint = refused(*distill(teacher=teacher, method="offa"))
        assert (error, hint) == ("no method is called 'offa'", "did you mean ofa?")

    def test_misspelt_key_names_what_is_nearest(self, teacher):
        error, hint = refused(*distill(teacher=teacher), "--set", "train.epoch=1")
        assert error == "train.epoch is no setting"
        assert "epochs" in hint

    def test_misspelt_kind_of_data_names_what_is_nearest(self, teacher):
        error, hint = refused(*distill(teacher=teacher, data="digit"))
        assert error.startswith("no data is called 'digit'")
        assert "digits" in hint

    def test_misspelt_folder_of_data_names_what_is_nearest(self, teacher):
        Path("images").mkdir()
        error, hint = refused(*distill(teacher=teacher, data="./imgaes"))
        assert error == "folder imgaes does not exist"
        assert "did you mean images?" in hint

    def test_misspelt_recipe_names_what_is_nearest(self):
        Path("fbt.toml").touch()
        error, hint = refused("distill", "fbtt.toml")
        assert (error, hint) == ("no recipe at fbtt.toml", "did you mean fbt.toml?")

    def test_misspelt_optimiser_names_what_is_nearest(self, teacher):
        error, hint = refused(*distill(teacher=teacher), "--set", "train.optimizer=adamww")
        assert error == "no optimiser is called 'adamww'"
        assert "adamw" in hint

    def test_teacher_of_other_classes_is_refused(self, teacher):
        error, hint = refused(*distill(teacher=teacher, data="digits"))
        assert error == f"{teacher} knows 4 classes, digits has 10"
        assert "--teacher-head probe" in hint
        assert "--teacher-head finetune" in hint
        assert "rsd" in hint

    @pytest.mark.parametrize("head", ["probe", "finetune"])
    def test_what_is_advised_for_a_teacher_of_other_classes_works(self, teacher, head):
        flags = ("--teacher-head", head)
        if head == "finetune":
            flags += ("--set", "teacher.finetune.epochs=1")
        done = anykd(*distill(teacher=teacher, data="synthetic:5x4"), *flags)
        assert done.code == 0, done.err

    def test_teacher_without_weights_is_refused(self):
        name = "swin_pico_patch4_window7_224"
        error, hint = refused(*distill(teacher=name))
        assert error == f"{name} has no pretrained weights, its classes would be random"
        assert "anykd train" in hint

    def test_weights_that_cannot_be_downloaded_are_told_with_what_to_do(self):
        start = time.monotonic()
        error, hint = refused(*distill(teacher="resnet18"))
        assert error.startswith("the pretrained weights of resnet18 could not be had: ")
        assert "network" in hint
        assert "weights=" in hint
        assert time.monotonic() - start < 20

    def test_missing_file_of_weights_is_told(self):
        Path("swin.safetensors").touch()
        flags = distill(teacher="resnet18")
        error, hint = refused(*flags, "--set", "teacher.weights=swim.safetensors")
        assert error == "no weights file at swim.safetensors"
        assert hint == "did you mean swin.safetensors?"

    def test_method_without_its_teacher_is_refused(self):
        error, hint = refused(*distill(method="ofa"))
        assert error == "the method OFA needs a teacher"
        assert "--teacher" in hint

    def test_model_of_fewer_than_three_levels_is_refused_with_their_number(self):
        error, _ = refused(
            *("train", "--model", "vit_tiny_patch16_224", "--data", DATA, "-o", "run"),
            *short("student.options={depth=2,patch_size=8}"),
        )
        expected = "vit_tiny_patch16_224 has 2 levels of features, 4 are needed, or 3 and a stem"
        assert error == expected

    def test_model_without_a_tail_is_refused_by_fbt_with_what_has_one(self, tmp_path):
        # Its learnt rotary positions are handed to every block.
        name = "vit_small_patch16_rope_mixed_224"
        options = "{patch_size=8,embed_dim=24,depth=4,num_heads=2}"
        out = tmp_path / "teacher"
        sets = (f"student.options={options}",)
        trained = anykd("train", "--model", name, "--data", DATA, "-o", out, *short(*sets))
        assert trained.code == 0, trained.err
        error, hint = refused(*distill(teacher=out, method="fbt"))
        assert error == f"{name} has no tail: its stage 4 is given more than its stage 3"
        assert "docs/reference/models.md" in hint
        assert "every method but fbt does without" in hint
        assert anykd(*distill(teacher=out, method="ofa")).code == 0

    @pytest.mark.parametrize(
        ("model", "size"), [("vit_tiny_patch16_224", 8), ("convnext_atto", 4), ("resnet18", 0)]
    )
    def test_image_size_that_a_model_cannot_take_is_told_before_training(self, model, size):
        error, _ = refused(
            *("train", "--model", model, "--data", DATA, "-o", "run"),
            *("--image-size", size, "--epochs", 1),
        )
        assert str(size) in error

    def test_image_size_that_no_patches_fill_is_told(self):
        flags = ["--image-size", "30", "--epochs", "1", "--batch-size", "16"]
        error, _ = refused("train", "--model", "vit_tiny_patch16_224", "--data", DATA, *flags)
        assert "30" in error

    def test_option_that_a_model_does_not_take_is_told(self):
        error, hint = refused(
            *("train", "--model", "resnet18", "--data", DATA, *short()),
            *("--set", "student.options={patch_size=4}"),
        )
        assert error.startswith("resnet18 does not take these options: ")
        assert "timm.create_model" in hint

    def test_batch_that_the_images_do_not_fill_is_told(self, teacher):
        error, hint = refused(*distill(teacher=teacher), "--batch-size", 65)
        assert error == "64 training images do not fill one batch of 65"
        assert "train.batch_size" in hint

    @pytest.mark.parametrize(
        ("arguments", "missing"),
        [(["train", "--data", DATA], "student"), (["train", "--model", "resnet18"], "data")],
    )
    def test_what_is_missing_is_told_with_its_flag(self, arguments, missing):
        error, hint = refused(*arguments)
        assert error == f"no {missing} is given"
        assert f"--{missing}" in hint

    def test_unfinished_run_is_no_model(self):
        Path("run").mkdir()
        error, hint = refused("evaluate", "run", "--data", DATA)
        assert error == "run is no finished run: it has no student/config.json"
        assert "anykd train" in hint

    def test_evaluating_a_misspelt_model_names_what_is_nearest(self):
        error, hint = refused("evaluate", "resnt18", "--data", DATA)
        assert error == "no model is called 'resnt18', and no run directory is there"
        assert "resnet18" in hint

    def test_evaluating_a_name_needs_data(self):
        error, hint = refused("evaluate", "resnet18")
        assert error == "no data is given"
        assert "--data" in hint

    def test_evaluating_on_other_classes_is_refused(self, teacher):
        error, hint = refused("evaluate", teacher, "--data", "digits")
        assert error == f"{teacher} knows 4 classes, digits has 10"
        command = hint.removeprefix("train it for these: anykd ").split()
        assert anykd(*command, "--out", "tuned", *short("data.limit=40")).code == 0
        assert anykd("evaluate", "tuned", "--data", "digits").code == 0

    def test_value_of_the_wrong_kind_is_told(self):
        done = anykd("train", "--model", "resnet18", "--data", DATA, "--epochs", "x")
        assert done.code == 2
        assert "'--epochs'" in done.err

    @pytest.mark.parametrize("flags", [["--resume"], ["--resume", "--out", "nothing"]])
    def test_nothing_to_resume_is_told(self, flags):
        error, _ = refused("distill", *flags)
        assert "student" not in error


@pytest.mark.end_to_end
def test_installed_command_ends_with_2_and_without_a_traceback():
    done = subprocess.run(
        [CONSOLE_SCRIPT, "train", "--model", "resnet81", "--data", DATA],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error == "error: no model is called 'resnet81', and no run directory is there"
    assert hint.startswith("hint: did you mean resnet18")
    assert not any(Path().iterdir())
