import tomllib
from pathlib import Path
from typing import Any

import pytest

from anykd.errors import RecipeError
from anykd.methods import METHODS
from anykd.recipe import Recipe, apply_overrides, find_key, read_toml

LEAST: dict[str, Any] = {"student": {"name": "resnet18"}, "data": {"source": "digits"}}
TWO_TEACHERS: list[dict[str, Any]] = [
    {"name": "a"},
    {"name": "b", "weight": 0.5, "image_size": 48, "options": {"patch_size": 16, "embed_dim": 24}},
]
THREE_METHODS: list[dict[str, Any]] = [
    {"name": "ofa", "gamma": [1.0, 1.1, 1.2, 1.3, 1.4], "teachers": [1]},
    {"name": "fitnet", "weight": 0.25, "kd_weight": 0},
    {"name": "kd"},
]


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
        assert found.methods == ({"name": "control", "task_weight": 1.0},)
        assert found.teachers == ()

    @pytest.mark.parametrize("name", METHODS)
    def test_fills_the_fields_of_the_method_in(self, name):
        (fields,) = recipe(method={"name": name}).methods
        # What has no value yet is taken from the data, and not written.
        assert set(fields) | {"num_samples"} == {
            "name",
            "num_samples",
            *METHODS[name].Config.model_fields,
        }

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


class TestSeveral:
    def test_tables_are_kept_in_their_order(self):
        found = recipe(teacher=TWO_TEACHERS, method=THREE_METHODS)
        assert [teacher.name for teacher in found.teachers] == ["a", "b"]
        assert [table.name for table in found.method_tables] == ["ofa", "fitnet", "kd"]
        assert found.method_name == "ofa+fitnet+kd"

    def test_a_list_of_one_table_is_that_table(self):
        one = recipe(teacher={"name": "a"}, method={"name": "kd"})
        assert recipe(teacher=[{"name": "a"}], method=[{"name": "kd"}]) == one

    def test_weights_are_1_and_all_teachers_teach_unless_told(self):
        found = recipe(teacher=TWO_TEACHERS, method=THREE_METHODS)
        assert [teacher.weight for teacher in found.teachers] == [1, 0.5]
        assert [table.place.weight for table in found.method_tables] == [1, 0.25, 1]
        learns = [[table.teaches(n) for n in (1, 2)] for table in found.method_tables]
        assert learns == [[True, False], [True, True], [True, True]]

    def test_a_task_weight_given_once_is_that_of_all(self):
        tables = [{"name": "ofa"}, {"name": "kd", "task_weight": 0.5}]
        assert [table["task_weight"] for table in recipe(method=tables).methods] == [0.5, 0.5]

    def test_task_weights_that_differ_are_refused(self):
        tables = [{"name": "ofa", "task_weight": 1}, {"name": "kd", "task_weight": 0}]
        error = refused(method=tables)
        assert "share one task term, but their task_weight are 0.0 and 1.0" in str(error)
        assert error.hint == "give it once, or the same to all"

    @pytest.mark.parametrize(
        ("table", "second", "message"),
        [
            ("method", {"name": "kd", "temperture": 1}, "method.2.temperture is no setting"),
            ("method", {"name": "kd", "temperature": 0}, "method.2.temperature: input should"),
            ("method", {"name": "kd", "weight": -1}, "method.2.weight: input should"),
            ("method", {"name": "kd", "teachers": [0]}, "method.2.teachers: input should"),
            ("method", {"name": "kd", "teachers": []}, "method.2.teachers: tuple should have"),
            ("method", {"temperature": 1}, "[method.2] needs a name"),
            ("method", "kd", "method.2 is no table, got 'kd'"),
            ("teacher", {"name": "b", "wieght": 1}, "teacher.2.wieght is no setting"),
            ("teacher", {"name": "b", "weight": -1}, "teacher.2.weight: input should"),
            ("teacher", {"weight": 1}, "teacher.2.name: field required"),
            ("teacher", "b", "teacher.2 is no table, got 'b'"),
        ],
    )
    def test_errors_name_the_file_and_which_table(self, table, second, message):
        values = LEAST | {table: [{"name": "kd"}, second]}
        with pytest.raises(RecipeError) as caught:
            Recipe.from_dict(values, source="my.toml")
        assert str(caught.value).startswith(f"my.toml: {message}")

    @pytest.mark.parametrize(
        ("table", "second", "near"),
        [
            ("method", {"name": "kd", "temperture": 1}, "temperature"),
            ("method", {"name": "kd", "wieght": 1}, "weight"),
            ("teacher", {"name": "b", "wieght": 1}, "weight"),
        ],
    )
    def test_unknown_keys_are_told_what_is_nearest(self, table, second, near):
        assert near in refused(**{table: [{"name": "kd"}, second]}).hint

    @pytest.mark.parametrize("weight", [-1, "much"])
    def test_the_weight_of_one_teacher_is_told_without_a_number(self, weight):
        message = str(refused(teacher={"name": "a", "weight": weight}))
        assert message.startswith("teacher.weight: ")

    def test_no_method_is_refused(self):
        error = refused(method=[])
        assert str(error) == "no method is given"
        assert error.hint == 'such as [method] with name = "ofa"'

    def test_no_teacher_is_none(self):
        assert recipe(teacher=[]) == recipe()

    @pytest.mark.parametrize(
        "method",
        [
            [{"name": "kd"}, {"name": "control"}],
            {"name": "control", "weight": 0.5},
            {"name": "control", "teachers": [1]},
        ],
    )
    def test_control_stands_by_itself(self, method):
        error = refused(method=method)
        assert str(error).startswith("control learns from labels alone: it stands by itself")
        assert "task_weight" in error.hint


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

    @pytest.mark.parametrize(
        "tables",
        [
            {"teacher": TWO_TEACHERS},
            {"method": THREE_METHODS},
            {"teacher": TWO_TEACHERS, "method": THREE_METHODS},
            {"teacher": {"name": "a", "weight": 0.5}, "method": {"name": "kd", "weight": 0.5}},
            {"teacher": {"name": "a"}, "method": [{"name": "crd", "teachers": [1]}] * 2},
            {"data": {"source": "images", "labels": False}, "method": {"name": "rsd"}},
        ],
    )
    def test_keeps_several_tables_and_their_weights(self, tables):
        written = recipe(**tables)
        again = Recipe.from_dict(tomllib.loads(written.to_toml()))
        assert again == written
        assert again.to_toml() == written.to_toml()
        assert again.method_tables == written.method_tables

    def test_writes_one_table_as_one(self):
        text = recipe(teacher=[{"name": "a"}], method=[{"name": "kd"}]).to_toml()
        assert "\n[teacher]\n" in text
        assert "\n[method]\n" in text

    def test_leaves_out_what_one_method_has_no_use_for(self):
        values = tomllib.loads(recipe(teacher={"name": "a"}, method={"name": "kd"}).to_toml())
        assert not {"weight", "teachers"} & set(values["method"])


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

    def test_into_one_of_several_tables_count_from_1(self):
        values = {"method": [{"name": "ofa"}, {"name": "kd"}], "teacher": [{"name": "a"}, {}]}
        changed = apply_overrides(
            values,
            ["method.2.weight=0.1", "method.1.gamma=2", "teacher.2.options.depth=4"],
        )
        assert changed == {
            "method": [{"name": "ofa", "gamma": 2}, {"name": "kd", "weight": 0.1}],
            "teacher": [{"name": "a"}, {"options": {"depth": 4}}],
        }
        assert values == {
            "method": [{"name": "ofa"}, {"name": "kd"}],
            "teacher": [{"name": "a"}, {}],
        }

    def test_replace_several_tables_by_a_list_of_others(self):
        values = {"method": [{"name": "ofa"}, {"name": "kd"}]}
        assert apply_overrides(values, ["method=[{name='rsd'}]"]) == {"method": [{"name": "rsd"}]}

    @pytest.mark.parametrize(
        ("override", "advice"),
        [
            ("method.weight=1", "method.1.weight"),
            ("method.options.depth=1", "method.1.depth"),
            ("method.0.weight=1", "method.1.weight"),
            ("method.3.weight=1", "method.1.weight"),
            ("method.-1.weight=1", "method.1.weight"),
            ("method.2=kd", "method.1.name"),
        ],
    )
    def test_into_several_tables_must_say_which(self, override, advice):
        with pytest.raises(RecipeError) as caught:
            apply_overrides({"method": [{"name": "ofa"}, {"name": "kd"}]}, [override])
        assert str(caught.value) == f"--set {override!r}: there are 2 [[method]] tables"
        assert caught.value.hint == f"say which one, such as {advice}"

    @pytest.mark.parametrize("override", ["depths.1=3", "depths.1.x=3", "empty.1.x=3"])
    def test_into_a_list_of_no_tables_are_refused(self, override):
        with pytest.raises(RecipeError, match="is no table"):
            apply_overrides({"depths": [2, 2], "empty": []}, [override])


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

    @pytest.mark.parametrize(
        ("name", "path"),
        [("seed", "seed"), ("epochs", "train.epochs"), ("labels", "data.labels")],
    )
    def test_finds_what_no_method_has_also_beside_several_methods(self, name, path):
        assert find_key(name, method=None) == path

    @pytest.mark.parametrize("name", ["gamma", "temperature", "task_weight"])
    def test_does_not_guess_which_of_several_methods_is_meant(self, name):
        with pytest.raises(RecipeError, match=f"no setting is called '{name}'"):
            find_key(name, method=None)


class TestModelTables:
    @pytest.mark.parametrize("table", ["student", "teacher"])
    def test_say_how_a_model_sees_images(self, table):
        values = {"name": "x", "mean": 0.5, "std": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
        found = recipe(**{table: values})
        config = found.student if table == "student" else found.teachers[0]
        assert config.build_options() == {
            "mean": (0.5, 0.5, 0.5),
            "std": (0.1, 0.2, 0.3),
            "interpolation": "bilinear",
        }
        assert Recipe.from_dict(tomllib.loads(found.to_toml())) == found

    def test_leave_what_is_not_said_to_the_model(self):
        assert recipe().student.build_options() == {}

    @pytest.mark.parametrize(
        ("values", "path"),
        [
            ({"std": 0}, "student.std: std divides"),
            ({"std": [0.5, 0.5, -1]}, "student.std: std divides"),
            ({"crop_pct": 0}, "student.crop_pct: "),
            ({"crop_pct": 1.1}, "student.crop_pct: "),
            ({"interpolation": "lanczos"}, "student.interpolation: "),
            ({"mean": [0.5, 0.5]}, "student.mean: "),
        ],
    )
    def test_refuse_what_no_model_can_see_by(self, values, path):
        assert str(refused(student={"name": "x"} | values)).startswith(path)

    def test_a_head_that_is_trained_brings_its_defaults(self):
        finetune = recipe(teacher={"name": "x", "head": "finetune"}).teachers[0].finetune
        assert finetune is not None
        assert (finetune.epochs, finetune.peak_lr, finetune.batch_size) == (10, 1e-4, None)
        assert recipe(teacher={"name": "x", "head": "probe"}).teachers[0].finetune is None
