import tomllib
from pathlib import Path
from typing import Any

import pytest

from anykd.errors import RecipeError
from anykd.methods import METHODS
from anykd.recipe import Recipe, apply_overrides, find_key, read_toml

LEAST: dict[str, Any] = {"student": {"name": "resnet18"}, "data": {"source": "digits"}}


def recipe(**tables: Any) -> Recipe:
    return Recipe.from_dict(LEAST | tables)


def refused(**tables: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        recipe(**tables)
    assert "\n" not in str(caught.value)
    return caught.value


class TestFromDict:
    def test_fills_every_default_in(self):
        found = recipe()
        assert found.seed == 0
        assert found.train.epochs == 100
        assert found.augment.preset == "cnn"
        assert found.method == {"name": "control", "task_weight": 1.0}
        assert found.teacher is None

    @pytest.mark.parametrize("name", METHODS)
    def test_fills_the_fields_of_the_method_in(self, name):
        fields = recipe(method={"name": name}).method
        assert set(fields) == {"name", *METHODS[name].Config.model_fields}

    def test_leaves_the_values_it_was_given_alone(self):
        values = LEAST | {"method": {"name": "ofa"}}
        Recipe.from_dict(values)
        assert values["method"] == {"name": "ofa"}

    @pytest.mark.parametrize(
        ("table", "values", "path", "near"),
        [
            ("sead", 1, "sead", "seed"),
            ("student", {"name": "x", "pretrianed": True}, "student.pretrianed", "pretrained"),
            ("teacher", {"name": "x", "wieghts": "w"}, "teacher.wieghts", "weights"),
            ("method", {"name": "ofa", "gama": 1}, "method.gama", "gamma"),
            ("data", {"source": "digits", "limmit": 1}, "data.limmit", "limit"),
            ("augment", {"mixupp": 1}, "augment.mixupp", "mixup"),
            ("train", {"epoch": 1}, "train.epoch", "epochs"),
        ],
    )
    def test_unknown_key_names_its_table_and_what_is_nearest(self, table, values, path, near):
        error = refused(**{table: values})
        assert str(error) == f"{path} is no setting"
        assert near in error.hint

    @pytest.mark.parametrize(
        ("table", "values", "path", "given"),
        [
            ("seed", -1, "seed", "-1"),
            ("train", {"epochs": 0}, "train.epochs", "0"),
            ("train", {"epochs": 1.5}, "train.epochs", "1.5"),
            ("train", {"peak_lr": "fast"}, "train.peak_lr", "'fast'"),
            ("train", {"precision": "fp8"}, "train.precision", "'fp8'"),
            ("data", {"source": "digits", "val_fraction": 1.5}, "data.val_fraction", "1.5"),
            ("augment", {"preset": "resnet"}, "augment.preset", "'resnet'"),
            ("method", {"name": "kd", "temperature": 0}, "method.temperature", "0"),
            ("teacher", {"name": 7}, "teacher.name", "7"),
        ],
    )
    def test_wrong_value_is_told_with_its_key(self, table, values, path, given):
        message = str(refused(**{table: values}))
        assert message.startswith(f"{path}: ")
        assert message.endswith(f", got {given}")

    @pytest.mark.parametrize(
        ("tables", "path"),
        [
            ({"image_size": "big"}, "image_size"),
            ({"method": {"name": "ofa", "gamma": "big"}}, "method.gamma"),
        ],
    )
    def test_wrong_value_of_several_types_is_told_with_its_key_alone(self, tables, path):
        assert str(refused(**tables)).startswith(f"{path}: ")

    @pytest.mark.parametrize(
        ("table", "value"), [("student", "resnet18"), ("train", 5), ("method", "kd")]
    )
    def test_a_table_that_is_none_is_told(self, table, value):
        assert str(refused(**{table: value})) == f"{table} is no table, got {value!r}"

    def test_missing_name_of_a_model_is_told(self):
        assert str(refused(student={})) == "student.name: field required"

    @pytest.mark.parametrize("table", [{}, {"temperature": 4}, {"name": 3}])
    def test_method_without_a_name_is_told(self, table):
        error = refused(method=table)
        assert str(error) == "[method] needs a name"
        assert error.hint == 'such as name = "ofa"'

    def test_unknown_method_names_what_is_nearest(self):
        error = refused(method={"name": "offa"})
        assert str(error) == "no method is called 'offa'"
        assert "ofa" in error.hint

    def test_warm_up_beyond_the_last_epoch_is_refused(self):
        message = str(refused(train={"epochs": 3, "warmup_epochs": 3}))
        assert message == "train: warmup_epochs must be below epochs = 3, got 3.0"

    def test_errors_name_the_file(self):
        with pytest.raises(RecipeError, match=r"^my\.toml: train\.epoch is no setting"):
            Recipe.from_dict(LEAST | {"train": {"epoch": 1}}, source="my.toml")


class TestToToml:
    @pytest.mark.parametrize("name", METHODS)
    def test_is_read_as_the_same_recipe(self, name):
        written = recipe(method={"name": name}, teacher={"name": "t"})
        assert Recipe.from_dict(tomllib.loads(written.to_toml())) == written

    @pytest.mark.parametrize(
        "tables",
        [
            {"method": {"name": "ofa", "gamma": [1.0, 1.1, 1.2, 1.3, 1.4]}},
            {"method": {"name": "ofa", "stages": [], "gamma": [1.2]}},
            {"method": {"name": "fbt", "order": "teacher_first", "detach_fusion": False}},
            {"image_size": [32, 64], "teacher": {"name": "t", "image_size": 96}},
            {"augment": {"preset": "vit", "crop_scale": [0.5, 1.0], "mixup": 0}},
            {"train": {"epochs": 7, "warmup_epochs": 0.5, "ema_decay": 0.999, "clip_grad": 5}},
            {"student": {"name": "vit", "options": {"patch_size": 8, "depths": [1, 2], "s": "x"}}},
        ],
    )
    def test_keeps_what_was_set(self, tables):
        written = recipe(**tables)
        assert written != recipe()
        again = Recipe.from_dict(tomllib.loads(written.to_toml()))
        assert again == written
        assert again.to_toml() == written.to_toml()


class TestReadToml:
    def test_missing_file_names_the_nearest_beside_it(self, tmp_path):
        (tmp_path / "teacher.toml").touch()
        with pytest.raises(RecipeError, match=r"no recipe at .*techer\.toml") as caught:
            read_toml(tmp_path / "techer.toml")
        assert caught.value.hint == "did you mean teacher.toml?"

    def test_missing_folder_is_told(self, tmp_path):
        with pytest.raises(RecipeError, match="no recipe at"):
            read_toml(tmp_path / "none" / "teacher.toml")

    @pytest.mark.parametrize("content", [b"seed = ", b"[train\n", b"\xff\xfe"])
    def test_what_is_no_toml_is_told(self, tmp_path, content):
        path: Path = tmp_path / "broken.toml"
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=r"broken\.toml is no TOML"):
            read_toml(path)


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1", 1),
            ("-2.5", -2.5),
            ("5e-4", 5e-4),
            ("true", True),
            ("[1, 2]", [1, 2]),
            ("{a=1,b=[2]}", {"a": 1, "b": [2]}),
            ("resnet18", "resnet18"),
            ("'resnet18'", "resnet18"),
            ("cifar100:../shared/data", "cifar100:../shared/data"),
            ("a=b", "a=b"),
            ("", ""),
            ("True", "True"),
        ],
    )
    def test_values_are_toml_and_bare_words_strings(self, text, expected):
        found = apply_overrides({}, [f"table.key={text}"])["table"]["key"]
        assert found == expected
        assert type(found) is type(expected)

    def test_go_as_deep_as_they_say_and_keep_the_rest(self):
        values = {"student": {"name": "x", "options": {"depth": 4}}, "seed": 1}
        changed = apply_overrides(values, ["student.options.width=8", "seed = 2"])
        expected = {"student": {"name": "x", "options": {"depth": 4, "width": 8}}, "seed": 2}
        assert changed == expected
        assert values == {"student": {"name": "x", "options": {"depth": 4}}, "seed": 1}

    def test_the_last_one_wins(self):
        assert apply_overrides({}, ["a=1", "a=2"]) == {"a": 2}

    @pytest.mark.parametrize("override", ["train.epochs", "=1", " =1"])
    def test_without_a_value_are_refused(self, override):
        with pytest.raises(RecipeError, match="has no value") as caught:
            apply_overrides({}, [override])
        assert caught.value.hint == "such as train.epochs=1"

    def test_into_what_is_no_table_are_refused(self):
        with pytest.raises(RecipeError, match=r"--set 'seed\.x=1': seed is no table"):
            apply_overrides({"seed": 1}, ["seed.x=1"])


class TestFindKey:
    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("seed", "seed"),
            ("image_size", "image_size"),
            ("train", "train"),
            ("epochs", "train.epochs"),
            ("limit", "data.limit"),
            ("mixup", "augment.mixup"),
            ("temperature", "method.temperature"),
        ],
    )
    def test_finds_the_table_of_a_short_name(self, name, path):
        assert find_key(name, method="kd") == path

    def test_asks_the_method_that_is_meant(self):
        assert find_key("gamma", method="ofa") == "method.gamma"
        with pytest.raises(RecipeError, match="no setting is called 'gamma'"):
            find_key("gamma", method="kd")

    def test_names_what_is_nearest(self):
        with pytest.raises(RecipeError, match="no setting is called 'epoch'") as caught:
            find_key("epoch", method="kd")
        assert "epochs" in caught.value.hint

    @pytest.mark.parametrize("name", METHODS)
    def test_no_setting_has_two_meanings(self, name):
        for key in METHODS[name].Config.model_fields:
            assert find_key(key, method=name) == f"method.{key}"
