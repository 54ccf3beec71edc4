"""Control, and what `build_method` and `describe_method` say."""

import pytest
import torch

from anykd.errors import RecipeError
from anykd.methods import METHODS, build_method, describe_method
from tests.methods.small import random_batch, small, small_pair


class TestControl:
    def test_needs_no_teacher_and_gives_it_no_say(self):
        student, teacher = small_pair("cnn", "vit")
        batch = random_batch()
        alone, beside = (build_method("control", student, t).eval() for t in (None, teacher))
        assert torch.equal(alone(batch).loss, beside(batch).loss)

    def test_is_the_cross_entropy_alone(self):
        method, batch = build_method("control", small("vit")).eval(), random_batch()
        assert batch.labels is not None
        terms = method(batch).terms
        log_p = method(batch).logits.log_softmax(dim=1)
        assert terms.keys() == {"task"}
        torch.testing.assert_close(terms["task"], -(batch.labels * log_p).sum(1).mean())

    def test_trains_the_students_parameters_and_no_others(self):
        method = build_method("control", small("vit"))
        assert {id(p) for p in method.parameters()} == {id(p) for p in method.student.parameters()}
        assert method.companions() == {}

    def test_without_task_weight_has_nothing_to_train_and_is_refused(self):
        with pytest.raises(RecipeError, match="task_weight"):
            build_method("control", small("cnn"), task_weight=0)(random_batch()).loss.backward()


class TestBuildMethod:
    @pytest.mark.parametrize(("given", "meant"), [("ofaa", "ofa"), ("controll", "control")])
    def test_a_misspelt_method_is_told_the_nearest(self, given, meant):
        with pytest.raises(RecipeError, match=f"no method is called '{given}'") as caught:
            build_method(given, *small_pair("cnn", "vit"))
        assert caught.value.hint == f"did you mean {meant}?"

    @pytest.mark.parametrize(
        ("name", "given", "meant"),
        [("kd", "temperatur", "temperature"), ("ofa", "gama", "gamma"), ("fbt", "ordr", "order")],
    )
    def test_a_misspelt_option_is_told_the_nearest(self, name, given, meant):
        with pytest.raises(RecipeError, match=f"method.{given} is no setting") as caught:
            build_method(name, *small_pair("cnn", "vit"), **{given: 1})
        assert meant in caught.value.hint

    @pytest.mark.parametrize("name", [name for name in METHODS if name != "control"])
    def test_a_missing_teacher_is_asked_for(self, name):
        with pytest.raises(RecipeError, match="needs a teacher"):
            build_method(name, small("cnn"))

    def test_a_setting_cannot_be_changed_afterwards(self):
        method = build_method("control", small("cnn"))
        with pytest.raises(ValueError, match="frozen"):
            method.config.task_weight = 3.0


@pytest.mark.parametrize("name", METHODS)
class TestDescribeMethod:
    def test_lists_every_field_with_its_default_and_meaning(self, name):
        text = describe_method(name)
        squeezed = " ".join(text.split())
        for key, field in METHODS[name].Config.model_fields.items():
            assert f"\n{key} = " in text
            assert field.description
            assert " ".join(field.description.split()) in squeezed

    def test_begins_with_the_methods_own_sentence(self, name):
        doc = METHODS[name].__doc__
        assert doc is not None
        assert describe_method(name).startswith(doc.splitlines()[0])
        assert f'[method] name = "{name}"' in describe_method(name)


def test_an_unknown_method_cannot_be_described():
    with pytest.raises(RecipeError, match="no method is called 'kdd'"):
        describe_method("kdd")
