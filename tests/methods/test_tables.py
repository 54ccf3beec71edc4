"""The ``[method]`` tables of a recipe: what they may say, and what they make."""

import json
from typing import Any

import pytest

from anykd.errors import RecipeError
from anykd.methods import METHODS, build_methods, complete_tables, read_tables
from anykd.methods.combination import Combination
from anykd.models import FrozenTeacher, StagedModel
from tests.methods.small import random_batch, small, small_options


@pytest.fixture(scope="module")
def models() -> tuple[StagedModel, list[FrozenTeacher]]:
    return small("vit", 1), [FrozenTeacher(small("cnn", 2)), FrozenTeacher(small("mlp", 3))]


class TestReading:
    def test_gives_every_default(self):
        (table,) = read_tables([{"name": "kd", "temperature": 4}])
        assert table.name == "kd"
        assert table.config == METHODS["kd"].Config.model_validate({"temperature": 4})
        assert (table.place.weight, table.place.teachers) == (1.0, None)

    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            ([], "no method is given"),
            (["kd"], "method is no table, got 'kd'"),
            ([{}], r"\[method\] needs a name"),
            ([{"name": 3}], r"\[method\] needs a name"),
            ([{"name": "kdd"}], "no method is called 'kdd'"),
            ([{"name": "kd", "temperature": 0}], "method.temperature: .*, got 0"),
            ([{"name": "kd"}, {"name": "ofa", "gamma": 0}], r"method\.2\.gamma: .*"),
            ([{"name": "kd", "weight": -1}], "method.weight: .*, got -1"),
            ([{"name": "kd", "teachers": [0]}], "method.teachers: .*, got 0"),
            ([{"name": "kd", "teachers": []}], "method.teachers: .*"),
            ([{"name": "kd"}, 3], "method.2 is no table, got 3"),
        ],
        ids=str,
    )
    def test_refuses_what_means_nothing(self, tables, message):
        with pytest.raises(RecipeError, match=rf"^{message}"):
            read_tables(tables)

    @pytest.mark.parametrize(
        ("key", "meant"),
        [("wieght", "weight"), ("teacher", "teachers"), ("temperatur", "temperature")],
    )
    def test_tells_the_nearest_key(self, key, meant):
        with pytest.raises(RecipeError, match=f"method.2.{key} is no setting") as caught:
            read_tables([{"name": "rsd"}, {"name": "kd", key: 1}])
        assert meant in caught.value.hint

    @pytest.mark.parametrize(
        "tables",
        [
            [{}],
            [{"name": "kd", "temperature": 0}],
            [{"name": "control"}, {"name": "kd"}],
            [{"name": "kd", "task_weight": 0}, {"name": "ofa", "task_weight": 1}],
        ],
        ids=str,
    )
    def test_names_the_file(self, tables):
        with pytest.raises(RecipeError, match=r"^my\.toml: "):
            read_tables(tables, source="my.toml")

    @pytest.mark.parametrize(
        "tables",
        [
            [{"name": "control"}, {"name": "kd"}],
            [{"name": "kd"}, {"name": "control"}],
            [{"name": "control", "weight": 0.5}],
            [{"name": "control", "teachers": [1]}],
        ],
        ids=str,
    )
    def test_refuses_control_within_a_combination(self, tables):
        with pytest.raises(RecipeError, match="control learns from labels alone"):
            read_tables(tables)

    def test_takes_control_alone(self):
        (table,) = read_tables([{"name": "control", "weight": 1, "task_weight": 2}])
        assert table.config.task_weight == 2


class TestTaskWeight:
    @pytest.mark.parametrize("asked", [(0.5, None), (None, 0.5), (0.5, 0.5)])
    def test_given_to_one_is_that_of_all(self, asked):
        tables = [
            {"name": name} | ({} if weight is None else {"task_weight": weight})
            for name, weight in zip(("kd", "rsd"), asked, strict=True)
        ]
        assert [table.config.task_weight for table in read_tables(tables)] == [0.5, 0.5]

    def test_is_1_unless_given(self):
        tables = read_tables([{"name": "kd"}, {"name": "rsd"}])
        assert [table.config.task_weight for table in tables] == [1.0, 1.0]

    def test_must_not_differ(self):
        tables = [{"name": "kd", "task_weight": 2}, {"name": "ofa", "task_weight": 0.5}]
        with pytest.raises(RecipeError, match=r"their task_weight are 0\.5 and 2\.0") as caught:
            read_tables(tables)
        assert caught.value.hint == "give it once, or the same to all"

    def test_of_1_spelt_out_differs_from_0(self):
        tables = [{"name": "kd", "task_weight": 1}, {"name": "ofa", "task_weight": 0}]
        with pytest.raises(RecipeError, match="task_weight"):
            read_tables(tables)


class TestCompleting:
    @pytest.mark.parametrize(
        "tables",
        [
            *([{"name": name}] for name in METHODS),
            [{"name": "kd", "weight": 0.5, "teachers": [2, 1], "temperature": 4}],
            [{"name": "ofa", "stages": [1, 4], "gamma": [1.0, 1.2, 1.4]}, {"name": "fitnet"}],
            [{"name": "kd", "task_weight": 0}, {"name": "kd", "weight": 2}, {"name": "crd"}],
        ],
        ids=str,
    )
    def test_gives_tables_that_read_as_the_same_and_complete_to_themselves(self, tables):
        read = read_tables(tables)
        complete = complete_tables(read)
        again = read_tables(json.loads(json.dumps(complete)))
        assert again == read
        assert complete_tables(again) == complete
        for table, written in zip(read, complete, strict=True):
            fields = {key for key, value in table.config if value is not None}
            assert {"name", *fields} <= written.keys()

    def test_leaves_out_the_place_of_a_plain_method(self):
        (plain,) = complete_tables(read_tables([{"name": "kd"}]))
        assert not {"weight", "teachers"} & plain.keys()
        first, _ = complete_tables(read_tables([{"name": "kd"}, {"name": "rsd"}]))
        assert first["weight"] == 1.0
        assert "teachers" not in first


class TestBuilding:
    @pytest.mark.parametrize("name", METHODS)
    def test_one_plain_table_gives_the_method_itself(self, name, models):
        student, (teacher, _) = models
        tables = read_tables([{"name": name, **small_options(name)}])
        method = build_methods(tables, student, [(teacher, 1.0)])
        assert type(method) is METHODS[name]
        assert method.config == tables[0].config
        assert method.student is student

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_control_takes_no_teacher(self, models, count):
        student, teachers = models
        tables = read_tables([{"name": "control"}])
        method = build_methods(tables, student, [(each, 1.0) for each in teachers[:count]])
        assert method._teacher is None

    @pytest.mark.parametrize(
        ("table", "weight", "factor"),
        [({}, 0.5, 0.5), ({"weight": 4}, 1.0, 4.0), ({"weight": 4}, 0.5, 2.0)],
        ids=str,
    )
    def test_a_weight_scales_all_but_the_task_term(self, models, table, weight, factor):
        student, (teacher, _) = models
        plain = build_methods(read_tables([{"name": "rkd"}]), student, [(teacher, 1.0)])
        weighted = build_methods(
            read_tables([{"name": "rkd"} | table]), student, [(teacher, weight)]
        )
        assert isinstance(weighted, Combination)
        batch = random_batch()
        once, scaled = plain.eval()(batch).terms, weighted.eval()(batch).terms
        assert once.keys() == scaled.keys()
        for key, term in once.items():
            expected = term.item() * (1 if key == "task" else factor)
            assert scaled[key].item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(
        ("tables", "count", "number"),
        [
            ([{"name": "kd", "teachers": [2]}], 1, 2),
            ([{"name": "kd"}, {"name": "rsd", "teachers": [1, 3]}], 2, 3),
            ([{"name": "kd", "weight": 2, "teachers": [1]}], 0, 1),
        ],
        ids=str,
    )
    def test_a_teacher_that_is_not_there_is_refused(self, models, tables, count, number):
        student, teachers = models
        given = [(teacher, 1.0) for teacher in teachers[:count]]
        message = f"wants to learn from teacher {number}, and there are {count}"
        with pytest.raises(RecipeError, match=message):
            build_methods(read_tables(tables), student, given)

    @pytest.mark.parametrize(
        "tables",
        [
            [{"name": "kd", "teachers": [1]}],
            [{"name": "kd", "teachers": [1]}, {"name": "rsd", "teachers": [1]}],
        ],
        ids=str,
    )
    def test_a_teacher_that_nobody_learns_from_is_refused(self, models, tables):
        student, teachers = models
        with pytest.raises(RecipeError, match="no method learns from teacher 2"):
            build_methods(read_tables(tables), student, [(each, 1.0) for each in teachers])

    @pytest.mark.parametrize(
        "tables",
        [[{"name": "kd"}], [{"name": "kd", "weight": 2}], [{"name": "kd"}, {"name": "rsd"}]],
        ids=str,
    )
    def test_a_missing_teacher_is_asked_for(self, models, tables: list[dict[str, Any]]):
        with pytest.raises(RecipeError, match="the method KD needs a teacher"):
            build_methods(read_tables(tables), models[0])

    def test_a_teacher_of_other_classes_is_refused_where_its_scores_are_compared(self, models):
        student, (teacher, _) = models
        other = FrozenTeacher(small("mlp", 3, num_classes=9))
        given = [(teacher, 1.0), (other, 1.0)]
        with pytest.raises(RecipeError, match="knows 9 classes"):
            build_methods(read_tables([{"name": "kd"}, {"name": "rsd"}]), student, given)
        tables = read_tables([{"name": "kd", "teachers": [1]}, {"name": "rsd"}])
        terms = build_methods(tables, student, given)(random_batch()).terms
        assert terms.keys() == {"task", "kd_teacher1", "rsd_teacher1", "rsd_teacher2"}
