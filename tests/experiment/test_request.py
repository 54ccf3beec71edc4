from pathlib import Path

import pytest

from anykd.errors import RecipeError
from anykd.experiment import load_recipe

RECIPE = """
seed = 3
[student]
name = "resnet18"
options = { channels = [8, 16, 24, 32] }
[teacher]
name = "runs/teacher"
[method]
name = "ofa"
gamma = 1.4
[data]
source = "digits"
limit = 100
"""


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


class TestLoadRecipe:
    def test_flags_and_recipe_are_two_spellings_of_one_thing(self, path):
        flags = {
            "seed": 3,
            "student.name": "resnet18",
            "teacher.name": "runs/teacher",
            "method.name": "ofa",
            "data.source": "digits",
        }
        sets = ["student.options.channels=[8,16,24,32]", "method.gamma=1.4", "data.limit=100"]
        assert load_recipe(None, flags, sets) == load_recipe(path, {}, [])

    def test_flags_replace_parts_and_keep_the_rest(self, path):
        recipe = load_recipe(path, {"data.source": "synthetic:4x16", "train.epochs": 7}, [])
        assert (recipe.data.source, recipe.data.limit, recipe.train.epochs) == (
            "synthetic:4x16",
            100,
            7,
        )

    def test_a_flag_that_is_not_given_replaces_nothing(self, path):
        assert load_recipe(path, {"seed": None, "student.name": None}, []).seed == 3

    def test_single_values_win_over_flags(self, path):
        assert load_recipe(path, {"train.epochs": 7}, ["train.epochs=9"]).train.epochs == 9

    def test_another_model_does_not_take_over_the_options_of_the_first(self, path):
        assert load_recipe(path, {"student.name": "resnet34"}, []).student.options == {}
        assert load_recipe(path, {"student.name": "resnet18"}, []).student.options

    def test_another_method_does_not_take_over_the_fields_of_the_first(self, path):
        (method,) = load_recipe(path, {"method.name": "kd"}, []).methods
        assert method == {
            "name": "kd",
            "task_weight": 1.0,
            "temperature": 1.0,
            "kd_weight": 1.0,
        }

    @pytest.mark.parametrize(
        ("flag", "missing"), [("data.source", "student"), ("student.name", "data")]
    )
    def test_what_is_missing_is_told_with_its_flag(self, flag, missing):
        with pytest.raises(RecipeError, match=f"no {missing} is given") as caught:
            load_recipe(None, {flag: "digits"}, [])
        assert f"--{missing}" in caught.value.hint

    def test_errors_name_the_file(self, path):
        path.write_text(RECIPE + "limitt = 3\n")
        with pytest.raises(RecipeError, match=r"recipe\.toml: data\.limitt is no setting"):
            load_recipe(path, {}, [])

    @pytest.mark.parametrize("line", ["train = 5", 'data = "digits"'])
    def test_a_table_that_is_none_is_told_also_with_flags(self, tmp_path, line):
        path = tmp_path / "recipe.toml"
        path.write_text(f'{line}\n[student]\nname = "resnet18"\n')
        with pytest.raises(RecipeError):
            load_recipe(path, {"train.epochs": 1, "data.source": "digits"}, [])
