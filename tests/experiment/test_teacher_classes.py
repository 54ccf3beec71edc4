"""Whether a teacher's classes are the data's, and which of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anykd.data import DataSplits
from anykd.data.bundled import SyntheticReader
from anykd.data.reader import ArrayReader
from anykd.errors import ModelError, RecipeError
from anykd.experiment.teacher_classes import TeacherClasses, resolve_classes
from anykd.models import StagedModel, create_staged
from tests.experiment.results import summary
from tests.experiment.runs import CNN, VIT, anykd, distill_cnn, short, train_vit

OWN = ("cat", "dog", "fire_truck", "great grey owl", "crane")


def data(*names: str) -> DataSplits:
    images = np.zeros((len(names), 8, 8, 3), dtype=np.uint8)
    reader = ArrayReader(images, list(range(len(names))))
    return DataSplits("animals", names, reader, reader)


@pytest.fixture(scope="module")
def model() -> StagedModel:
    model = create_staged("mobilenetv3_small_050", num_classes=5, image_size=32)
    model.class_names = OWN
    return model


@pytest.fixture(scope="module")
def imagenet() -> StagedModel:
    return create_staged("mobilenetv3_small_050", image_size=32)


def resolve(model: StagedModel, *names: str, given=None) -> TeacherClasses:
    return resolve_classes(model, data(*names), name="runs/owls", given=given, hint="a new head")


def refused(model: StagedModel, *names: str, given=None) -> ModelError | RecipeError:
    with pytest.raises((ModelError, RecipeError)) as caught:
        resolve(model, *names, given=given)
    assert "\n" not in str(caught.value)
    return caught.value


class TestByName:
    def test_the_same_classes_are_equal(self, model):
        found = resolve(model, *OWN)
        assert (found.kind, found.chosen, found.names, found.warning) == ("equal", None, OWN, "")

    def test_other_spellings_of_the_same_are_equal_too(self, model):
        assert resolve(model, "Cat", "DOG", "fire truck", "great-grey_owl", "crane").kind == "equal"

    def test_some_of_them_are_mapped(self, model):
        found = resolve(model, "crane", "fire-truck")
        assert (found.kind, found.chosen, found.num_own) == ("mapped", (4, 2), 5)
        assert found.names == ("crane", "fire_truck")

    def test_all_in_another_order_are_mapped(self, model):
        found = resolve(model, *reversed(OWN))
        assert (found.kind, found.chosen) == ("mapped", (4, 3, 2, 1, 0))

    def test_imagenets_are_found_by_id_and_lemma(self, imagenet):
        found = resolve(imagenet, "goldfish", "n01440764", "fire_truck")
        assert found.chosen == (1, 0, 555)
        assert found.names[0] == "goldfish, Carassius auratus (n01443537)"

    def test_as_many_of_other_names_are_taken_as_given_with_a_warning(self, model):
        found = resolve(model, *"abcde")
        assert (found.kind, found.chosen) == ("unnamed", None)
        assert "call 5 of them differently, such as 'a'" in found.warning
        assert "teacher.classes" in found.remedy

    def test_one_renamed_in_its_place_is_taken_as_given_with_a_warning(self, model):
        found = resolve(model, "cat", "dog", "fire engine", "great grey owl", "crane")
        assert found.kind == "unnamed"
        assert "call 1 of them differently, such as 'fire engine'" in found.warning

    def test_of_a_model_without_names_are_taken_as_given(self):
        model = create_staged("mobilenetv3_small_050", num_classes=3, image_size=32)
        assert resolve(model, *"abc") == TeacherClasses("unnamed", 3)

    def test_as_many_in_another_order_with_one_unknown_are_refused(self, model):
        error = refused(model, "dog", "cat", "fire truck", "great grey owl", "zebra")
        assert "'dog' is not the same one in both, and runs/owls has no 'zebra'" in str(error)
        assert "teacher.classes" in error.hint

    def test_a_name_of_several_is_refused_with_all_of_them(self, imagenet):
        error = refused(imagenet, "crane", "goldfish")
        assert "'crane' may be several classes of runs/owls: 134, crane (n02012849)" in str(error)
        assert "or 517, crane (n03126707)" in str(error)
        assert resolve(imagenet, "n02012849", "n03126707").chosen == (134, 517)

    def test_two_names_of_one_are_refused(self, imagenet):
        error = refused(imagenet, "tench", "Tinca tinca", "goldfish")
        assert "'tench' and 'Tinca tinca' are one class of runs/owls: 0, tench" in str(error)

    def test_others_are_refused_with_what_is_unknown(self, model):
        error = refused(model, "cat", "zebra", "okapi")
        known = "runs/owls knows 5 classes, animals has 3"
        assert str(error) == f"{known}, and 'zebra' and 1 more are none of them"
        assert error.hint == "a new head"

    def test_more_than_the_teacher_has_are_refused(self, model):
        assert str(refused(model, *OWN, "zebra")) == "runs/owls knows 5 classes, animals has 6"

    def test_fewer_than_a_teacher_without_names_has_are_refused(self):
        model = create_staged("mobilenetv3_small_050", num_classes=7, image_size=32)
        assert "does not say what its classes are called" in str(refused(model, "a", "b"))


class TestByHand:
    def test_indices_and_names_may_stand_side_by_side(self, model):
        assert resolve(model, "a", "b", "c", given=(3, "Fire Truck", "0")).chosen == (3, 2, 0)

    def test_goes_before_what_the_names_say(self, model):
        assert resolve(model, "cat", "dog", given=(1, 0)).chosen == (1, 0)

    def test_may_be_a_file_with_one_a_line(self, model, tmp_path):
        (tmp_path / "classes.txt").write_text("crane\n\n 1 \n")
        assert resolve(model, "a", "b", given=str(tmp_path / "classes.txt")).chosen == (4, 1)

    def test_of_a_missing_file_names_the_nearest(self, model, tmp_path):
        (tmp_path / "classes.txt").write_text("crane\n1\n")
        error = refused(model, "a", "b", given=str(tmp_path / "clases.txt"))
        assert "no file at" in str(error)
        assert "classes.txt" in error.hint

    def test_of_another_length_is_refused(self, model):
        error = refused(model, "a", "b", given=(1, 2, 3))
        assert str(error) == "teacher.classes names 3 classes, animals has 2"
        assert "in this order: a, b" in error.hint

    def test_of_an_unknown_name_says_which_is_near(self, model):
        error = refused(model, "a", "b", given=("cat", "fire trucks"))
        assert "runs/owls has no class 'fire trucks'" in str(error)
        assert "fire_truck" in error.hint

    def test_of_a_name_of_several_asks_for_the_index(self, imagenet):
        assert "134, 517" in refused(imagenet, "a", "b", given=("crane", 3)).hint


PATTERNS = 4


def paint(root: Path, names: dict[str, int], per_class: int = 16) -> Path:
    """Class folders of the patterns that the synthetic data has under other names."""
    reader = SyntheticReader(PATTERNS, per_class, split=0)
    for name, pattern in names.items():
        (root / name).mkdir(parents=True)
        for i in range(len(reader)):
            if reader.labels[i] == pattern:
                reader[i].image.save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run that knows the patterns 0 to 3 well."""
    return train_vit(tmp_path_factory.mktemp("teacher") / "run", epochs=3)


class TestRun:
    def test_teacher_of_more_classes_teaches_some_of_them(self, teacher, tmp_path):
        folder = paint(tmp_path / "some", {"Pattern-3": 3, "pattern_1": 1})
        out = distill_cnn(tmp_path / "run", teacher, data=str(folder))
        (found,) = summary(out)["teachers"]
        assert found["classes"] == "mapped"
        assert found["top1"] == 100
        assert len(json.loads((out / "student" / "config.json").read_text())["label_names"]) == 2

    def test_map_by_hand_reaches_the_teacher(self, teacher, tmp_path):
        folder = paint(tmp_path / "renamed", {"a": 3, "b": 1})
        out = distill_cnn(tmp_path / "run", teacher, "teacher.classes=[3, 1]", data=str(folder))
        assert summary(out)["teachers"][0]["top1"] == 100
        wrong = distill_cnn(tmp_path / "wrong", teacher, "teacher.classes=[1, 3]", data=str(folder))
        assert summary(wrong)["teachers"][0]["top1"] == 0

    def test_as_many_of_other_names_is_warned_of(self, teacher, tmp_path):
        folder = paint(tmp_path / "all", {"a": 0, "b": 1, "c": 2, "d": 3})
        out = distill_cnn(tmp_path / "run", teacher, data=str(folder))
        assert "call 4 of them differently" in json.dumps(summary(out)["findings"])

    def test_other_classes_are_refused_with_both_ways_out(self, teacher, tmp_path):
        done = anykd(
            *("distill", "--teacher", teacher, "--student", "resnet18", "--data", "synthetic:6x8"),
            *("-o", tmp_path / "run", *short(CNN)),
        )
        assert done.code == 2
        assert "knows 4 classes, synthetic:6x8 has 6" in done.err
        for way in ("--teacher-head probe", "--teacher-head finetune", "rsd"):
            assert way in done.err

    def test_a_file_of_weights_may_be_for_the_data_or_for_the_architecture(self, tmp_path):
        for classes in (4, 1000):
            torch.manual_seed(0)
            name = "mobilenetv3_small_050"
            model = create_staged(name, num_classes=classes, image_size=32).model
            save_file(model.state_dict(), tmp_path / f"{classes}.safetensors")
            done = anykd(
                *("distill", "--teacher", name, "--student", "resnet18", "--method", "kd"),
                *("--set", f"teacher.weights={tmp_path / str(classes)}.safetensors"),
                *("--data", "synthetic:4x16", "-o", tmp_path / f"run{classes}", "--force"),
                *short(CNN),
            )
            if classes == 4:
                assert done.code == 0, done.err
            else:
                assert done.code == 2
                assert "knows 1000 classes, synthetic:4x16 has 4" in done.err


def scores(*flags: object, of: object) -> str:
    """What a model is scored at: the line that is the same each time."""
    done = anykd("evaluate", of, *flags)
    assert done.code == 0, done.err
    return done.out.splitlines()[0]


class TestEvaluate:
    def test_data_of_some_classes_is_scored_among_these(self, teacher, tmp_path):
        folder = paint(tmp_path / "some", {"pattern 2": 2, "pattern_0": 0})
        done = anykd("evaluate", teacher, "--data", folder, "--split", "all")
        assert done.out.startswith("top-1 100.00 %  top-5 100.00 %")
        assert done.out.splitlines()[0].endswith("32 images")

    def test_split_chooses_the_images(self, teacher):
        counts = {}
        for split in ("val", "train", "all"):
            done = anykd("evaluate", teacher, "--split", split)
            assert done.code == 0, done.err
            counts[split] = int(done.out.splitlines()[0].split()[-2])
        assert counts == {"val": 16, "train": 64, "all": 80}

    def test_split_of_another_name_is_refused(self, teacher):
        done = anykd("evaluate", teacher, "--split", "test")
        assert done.code == 2
        assert "--split test is none of val, train, all" in done.err

    def test_one_image_a_class_is_enough_to_be_scored_on(self, teacher, tmp_path):
        folder = paint(tmp_path / "few", {"pattern 2": 2, "pattern_0": 0}, per_class=1)
        assert anykd("evaluate", teacher, "--data", folder).code == 2  # none can be held out
        assert anykd("evaluate", teacher, "--data", folder, "--split", "all").code == 0

    def test_mean_of_the_model_can_be_set(self, teacher):
        as_saved = scores("--set", "student.mean=[0.5, 0.5, 0.5]", of=teacher)
        assert as_saved == scores(of=teacher)
        assert scores("--set", "student.mean=0.9", of=teacher) != as_saved

    def test_other_classes_are_refused(self, teacher):
        done = anykd("evaluate", teacher, "--data", "synthetic:6x8")
        assert done.code == 2
        assert "knows 4 classes, synthetic:6x8 has 6" in done.err
        assert "anykd train --model" in done.err


def test_a_model_by_name_is_scored_with_its_own_crop_unless_told_otherwise(teacher):
    weights = teacher / "student" / "model.safetensors"

    def scored(*sets: str) -> str:
        chosen = [part for value in (VIT, *sets) for part in ("--set", value)]
        flags = ("--weights", weights, "--data", "synthetic:4x16", "--image-size", 32)
        return scores(*flags, *chosen, of="vit_tiny_patch16_224")

    # The architecture's own is 0.9; the run of this model has 1.
    assert scored() == scored("augment.crop_pct=0.9") == scored("student.crop_pct=0.9")
    assert scored("augment.crop_pct=1.0") == scored("student.crop_pct=1.0")
    assert scored("augment.crop_pct=1.0") == scores(of=teacher)
    assert scored() != scored("augment.crop_pct=1.0")
