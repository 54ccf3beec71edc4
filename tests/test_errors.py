"""The error tree, and what it says of misspelt names."""

import pytest

from anykd.errors import (
    AnykdError,
    CacheError,
    CheckpointError,
    DataError,
    ModelError,
    RecipeError,
    nearest,
)

KINDS = [RecipeError, ModelError, DataError, CheckpointError, CacheError]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_caught_as_an_anykd_error(kind):
    with pytest.raises(AnykdError, match="what was given") as caught:
        raise kind("what was given", hint="what would do")
    assert caught.value.hint == "what would do"


@pytest.mark.parametrize("kind", [RecipeError, ModelError, DataError])
def test_what_a_caller_passed_wrongly_is_also_a_value_error(kind):
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize("kind", [CheckpointError, CacheError])
def test_what_is_missing_on_disk_is_not_a_value_error(kind):
    assert not issubclass(kind, ValueError)


def test_the_hint_may_be_left_out():
    error = AnykdError("the message says it all")
    assert str(error) == "the message says it all"
    assert error.hint == ""


def test_the_hint_is_not_part_of_the_message():
    assert str(ModelError("no such model", hint="did you mean resnet18?")) == "no such model"


class TestNearest:
    def test_names_the_closest_first(self):
        known = ["resnet50", "resnet18", "vit_tiny"]
        assert nearest("resnet81", known).startswith("did you mean resnet18")

    def test_names_at_most_three(self):
        assert nearest("abcd", ["abcde", "abcdf", "abcdg", "abcdh"]).count(",") == 2

    def test_lists_the_known_names_where_none_is_near_and_they_are_few(self):
        assert nearest("zzz", ["kd", "ofa", "fbt"]) == "known: kd, ofa, fbt"

    def test_is_silent_where_none_is_near_and_they_are_many(self):
        assert nearest("zzz", (f"model{i}" for i in range(1000))) == ""


def test_nothing_known_gives_no_hint():
    assert nearest("resnet", []) == ""
