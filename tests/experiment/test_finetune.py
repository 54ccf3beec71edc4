"""A teacher that is trained first, in a run of its own inside the student's."""

import json

import pytest

from anykd.errors import RecipeError
from anykd.experiment.teachers import teacher_recipe
from anykd.recipe import Recipe
from tests.experiment.results import InterruptionError, assert_same_run, interrupt, summary, weights
from tests.experiment.runs import CNN, anykd, distill_cnn, newest_checkpoint, train_vit

WIDER = "synthetic:6x8"
FINETUNE = (
    "teacher.head=finetune",
    "teacher.finetune={epochs=2, peak_lr=1e-3, batch_size=24}",
    "train.log_every=1",
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run that knows four patterns; the data will have six."""
    return train_vit(tmp_path_factory.mktemp("teacher") / "run", epochs=2)


@pytest.fixture(scope="module")
def finetuned(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetuned") / "run"
    return distill_cnn(out, teacher, *FINETUNE, data=WIDER, epochs=2)


def test_teacher_is_a_run_of_its_own(finetuned):
    own = summary(finetuned / "teacher")
    assert (own["method"], own["epochs"], own["data"]) == ("control", 2, WIDER)
    assert own["top1"] > 40  # chance is 17
    done = anykd("evaluate", finetuned / "teacher")
    assert done.out.startswith(f"top-1 {own['top1']:.2f} %")


def test_teacher_starts_from_its_weights(finetuned, teacher):
    recipe = (finetuned / "teacher" / "recipe.toml").read_text()
    assert f'name = "{teacher}"' in recipe
    assert weights(finetuned / "teacher")["pos_embed"].shape == weights(teacher)["pos_embed"].shape
    # Two short epochs of six steps barely move a position embedding of its own training.
    moved = weights(finetuned / "teacher")["pos_embed"] - weights(teacher)["pos_embed"]
    assert 0 < moved.abs().max() < 0.02


def test_student_learns_from_it(finetuned):
    (found,) = summary(finetuned)["teachers"]
    assert found["classes"] == "finetuned"
    assert found["top1"] == summary(finetuned / "teacher")["top1"]
    assert summary(finetuned)["top1"] > 0


def test_finished_teacher_is_used_again(teacher, finetuned, tmp_path, monkeypatch):
    out = tmp_path / "run"
    # The teacher has two steps an epoch, the student three: this is the student's last.
    interrupt(monkeypatch, epoch=0, step=2)
    with pytest.raises(InterruptionError):
        distill_cnn(out, teacher, *FINETUNE, data=WIDER, epochs=2)
    monkeypatch.undo()
    assert not (out / "checkpoint").exists()
    trained = (out / "teacher" / "student" / "model.safetensors").stat().st_mtime_ns
    done = anykd("distill", "--resume", "-o", out)
    assert done.code == 0, done.err
    assert (out / "teacher" / "student" / "model.safetensors").stat().st_mtime_ns == trained
    assert_same_run(out, finetuned)


def test_interrupted_teacher_goes_on(teacher, finetuned, tmp_path, monkeypatch):
    out = tmp_path / "run"
    interrupt(monkeypatch, epoch=1, step=0)  # its second epoch
    with pytest.raises(InterruptionError):
        distill_cnn(out, teacher, *FINETUNE, data=WIDER, epochs=2)
    monkeypatch.undo()
    assert newest_checkpoint(out / "teacher").is_dir()
    assert not (out / "teacher" / "summary.json").exists()
    done = anykd("distill", "--resume", "-o", out)
    assert done.code == 0, done.err
    assert_same_run(out / "teacher", finetuned / "teacher")
    assert_same_run(out, finetuned)


def test_begun_anew_it_is_not_thrown_away(teacher, tmp_path, monkeypatch):
    out = tmp_path / "run"
    interrupt(monkeypatch, epoch=1, step=0)
    with pytest.raises(InterruptionError):
        distill_cnn(out, teacher, *FINETUNE, data=WIDER, epochs=2)
    monkeypatch.undo()
    done = anykd(
        *("distill", "--teacher", teacher, "--teacher-head", "finetune", "--student", "resnet18"),
        *("--data", WIDER, "-o", out),
    )
    assert done.code == 2
    assert "holds an unfinished run" in done.err
    assert "--resume" in done.err


def test_resumed_with_another_recipe_is_refused_before_anything_is_trained(
    teacher, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    interrupt(monkeypatch, epoch=1, step=0)
    with pytest.raises(InterruptionError):
        distill_cnn(out, teacher, *FINETUNE, data=WIDER, epochs=2)
    monkeypatch.undo()
    done = anykd("distill", "--resume", "-o", out, "--set", "seed=3")
    assert done.code == 2
    assert "is a run of another recipe" in done.err
    assert not (out / "teacher" / "summary.json").exists()


def test_what_does_not_fit_is_refused_before_the_teacher_is_trained(teacher, tmp_path):
    done = anykd(
        *("distill", "--teacher", teacher, "--teacher-head", "finetune", "--student", "resnt18"),
        *("--data", WIDER, "-o", tmp_path / "run", "--image-size", "32"),
    )
    assert done.code == 2
    assert "no model is called 'resnt18'" in done.err
    assert not (tmp_path / "run").exists()


class TestRecipe:
    def recipe(self, **teacher) -> Recipe:
        return Recipe.from_dict(
            {
                "seed": 3,
                "image_size": 48,
                "student": {"name": "resnet18", "pretrained": True},
                "teacher": {"name": "convnext_tiny", "head": "finetune"} | teacher,
                "method": {"name": "fbt"},
                "data": {"source": "digits", "limit": 100, "split_seed": 5},
                "augment": {"preset": "vit", "crop_pct": 0.9},
                "train": {"epochs": 300, "warmup_epochs": 20, "batch_size": 64, "min_lr": 1e-3,
                          "precision": "float32"},
            }
        )  # fmt: skip

    def test_is_the_same_data_augmentation_and_seed(self):
        recipe = self.recipe()
        own = teacher_recipe(recipe, 1)
        assert (own.data, own.augment, own.seed) == (recipe.data, recipe.augment, 3)
        assert own.teachers == ()
        assert own.method_name == "control"
        assert own.image_size == 48

    def test_trains_as_the_table_says_and_else_as_the_student(self):
        own = teacher_recipe(self.recipe(finetune={"epochs": 4, "peak_lr": 2e-4}), 1).train
        assert (own.epochs, own.peak_lr, own.batch_size, own.optimizer) == (4, 2e-4, 64, "adamw")
        assert (own.precision, own.warmup_epochs) == ("float32", None)
        assert own.min_lr == 2e-4  # never above the peak

    def test_has_defaults_for_a_pretrained_model(self):
        own = teacher_recipe(self.recipe(), 1)
        assert (own.train.epochs, own.train.peak_lr) == (10, 1e-4)
        assert own.student.pretrained

    def test_keeps_weights_options_and_view_of_the_teacher(self):
        table = {
            "weights": "file.safetensors",
            "options": {"drop_path_rate": 0.1},
            "mean": 0.5,
            "std": [0.5, 0.4, 0.3],
            "image_size": 64,
        }
        own = teacher_recipe(self.recipe(**table), 1).student
        assert (own.weights, own.options, own.pretrained) == (
            "file.safetensors",
            {"drop_path_rate": 0.1},
            False,
        )
        assert (own.mean, own.std, own.image_size) == (0.5, (0.5, 0.4, 0.3), 64)

    def test_of_a_run_leaves_it_its_size(self, tmp_path):
        assert teacher_recipe(self.recipe(name=str(tmp_path)), 1).image_size is None

    def test_is_written_out_whole(self):
        assert "[teacher.finetune]" in self.recipe().to_toml()
        assert Recipe.from_dict(json.loads(self.recipe().model_dump_json(by_alias=True))) == (
            self.recipe()
        )

    @pytest.mark.parametrize(
        ("table", "message", "hint"),
        [
            ({"finetune": {"epoch": 3}}, "teacher.finetune.epoch is no setting", "epochs"),
            ({"finetune": {"epochs": 0}}, "teacher.finetune.epochs: ", ""),
            ({"finetune": {"epochs": 2, "warmup_epochs": 2}}, "below epochs = 2, got 2", ""),
            ({"head": "probe", "finetune": {}}, 'goes with head = "finetune"', ""),
            ({"classes": [1, 2]}, "give one of them", ""),
            ({"head": "prob"}, "teacher.head: ", ""),
        ],
    )
    def test_that_is_wrong_is_refused(self, table, message, hint):
        with pytest.raises(RecipeError) as caught:
            self.recipe(**table)
        assert message in str(caught.value)
        assert hint in caught.value.hint


def test_flag_that_is_misspelt_names_the_choices(teacher, tmp_path):
    done = anykd(
        *("distill", "--teacher", teacher, "--teacher-head", "probes", "--student", "resnet18"),
        *("--data", WIDER, "-o", tmp_path / "run", "--set", CNN),
    )
    assert done.code == 2
    assert "teacher.head: input should be 'probe' or 'finetune'" in done.err
