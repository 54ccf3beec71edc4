"""FrozenConfig: immutable, strict about keys, described by its docstrings."""

import pydantic
import pytest

from anykd.config import FrozenConfig


class Oven(FrozenConfig):
    """An example."""

    heat: float = 200.0
    """Degrees Celsius."""


def test_defaults_are_filled_in():
    assert Oven().heat == 200.0


def test_values_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Oven().heat = 100.0


def test_an_unknown_key_is_refused_by_name():
    with pytest.raises(pydantic.ValidationError, match=r"heet\n.*Extra inputs are not permitted"):
        Oven.model_validate({"heet": 100.0})


def test_docstrings_of_fields_are_their_descriptions():
    assert Oven.model_fields["heat"].description == "Degrees Celsius."
    assert Oven.model_json_schema()["properties"]["heat"]["description"] == "Degrees Celsius."


def test_equal_values_make_equal_configs_that_hash_alike():
    assert Oven(heat=1) == Oven(heat=1.0)
    assert hash(Oven(heat=1)) == hash(Oven(heat=1.0))
