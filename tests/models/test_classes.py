"""What a model's classes are called, and how a data set's classes are found among them."""

import pytest
from timm.data import ImageNetInfo
from torch import nn

from anykd.models import create_staged, save_model
from anykd.models.classes import class_names_of, match_classes, shown


@pytest.fixture(scope="module")
def imagenet() -> tuple[tuple[str, ...], ...]:
    return class_names_of(create_staged("mobilenetv3_small_050", image_size=32))


def saved(tmp_path, names, num_classes=3):
    """A model whose files name its classes, as a run keeps them."""
    model = create_staged("mobilenetv3_small_050", num_classes=num_classes, image_size=32)
    save_model(model, tmp_path / "student", class_names=tuple(names))
    return create_staged(str(tmp_path))


class TestNamesOfAModel:
    def test_are_those_that_its_run_keeps(self, tmp_path):
        model = saved(tmp_path, ["cat", "fire_truck", "dog"])
        assert class_names_of(model) == (("cat",), ("fire_truck",), ("dog",))

    def test_of_imagenet_are_its_ids_and_all_that_wordnet_calls_them(self, imagenet):
        assert imagenet[1] == ("n01443537", "goldfish, Carassius auratus", "goldfish",
                               "Carassius auratus")  # fmt: skip
        assert imagenet[134] == ("n02012849", "crane")
        assert len(imagenet) == 1000

    def test_are_known_for_every_set_of_imagenets_classes_that_timm_has(self):
        for size in (11221, 11821, 21841, 21843):
            model = create_staged("mobilenetv3_small_050", num_classes=size, image_size=32)
            assert len(class_names_of(model)) == size

    def test_of_any_other_size_are_unknown(self):
        model = create_staged("mobilenetv3_small_050", num_classes=999, image_size=32)
        assert class_names_of(model) == ()

    def test_are_gone_with_a_new_classifier(self):
        model = create_staged("mobilenetv3_small_050", image_size=32)
        model.replace_classifier(nn.Linear(model.width, 1000))
        assert class_names_of(model) == ()

    def test_that_are_imagenets_gain_its_other_spellings(self, tmp_path):
        info = ImageNetInfo()
        names = [info.index_to_description(i).split(",")[0] for i in range(1000)]
        names[7] = "rooster"  # a few may be called otherwise
        found = class_names_of(saved(tmp_path, names, 1000))
        assert found[1] == ("goldfish", "n01443537", "goldfish, Carassius auratus",
                            "Carassius auratus")  # fmt: skip
        assert found[7][0] == "rooster"

    def test_that_merely_are_a_thousand_stay_as_they_are(self, tmp_path):
        names = [f"bird {i}" for i in range(1000)]
        assert class_names_of(saved(tmp_path, names, 1000)) == tuple((name,) for name in names)


class TestMatch:
    def test_takes_ids_lemmas_and_whole_descriptions(self, imagenet):
        names = ["n01443537", "Carassius auratus", "goldfish, Carassius auratus"]
        assert match_classes(names, imagenet).candidates == ((1,), (1,), (1,))

    @pytest.mark.parametrize("name", ["great_grey_owl", "Great Grey-Owl", " GREAT  GREY OWL"])
    def test_does_not_look_at_case_and_separators(self, imagenet, name):
        assert match_classes([name], imagenet).candidates == ((24,),)

    def test_knows_what_is_in_place_moved_unknown_ambiguous_and_shared(self):
        spellings = [("n1", "crane"), ("n2", "crane"), ("n3", "tench", "Tinca tinca"), ("owl",)]
        match = match_classes(["crane", "owl", "tench", "zebra", "Tinca-tinca"], spellings)
        assert match.candidates == ((0, 1), (3,), (2,), (), (2,))
        assert match.moved == ("owl", "Tinca-tinca")
        assert match.unknown == ("zebra",)
        assert match.ambiguous == {"crane": (0, 1)}
        assert match.shared == {2: ("tench", "Tinca-tinca")}
        assert not match.in_place

    def test_in_place_is_every_class_at_its_own_index(self):
        assert match_classes(["a", "b"], [("A",), ("B",)]).in_place
        assert not match_classes(["b", "a"], [("A",), ("B",)]).in_place
        # A name that several classes have may well be the one in its place.
        assert match_classes(["a", "a_"], [("a",), ("A ",)]).in_place


def test_a_class_is_shown_by_its_name_before_its_id():
    assert shown(("n02012849", "crane")) == "crane (n02012849)"
    assert shown(("fire_truck", "n00000001")) == "fire_truck"
    assert shown(("n02012849",)) == "n02012849"


def test_a_model_that_names_too_few_of_its_classes_names_none(tmp_path):
    model = saved(tmp_path, ["cat", "dog", "owl"])
    model.class_names = ("cat",)
    assert class_names_of(model) == ()
