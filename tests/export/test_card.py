"""The model card says what is known, and hostile names stay text."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from huggingface_hub import ModelCard

from anykd.export import CardFacts, Maker, Signature
from anykd.export.card import model_card

SIGNATURE = Signature(
    image_size=(32, 32),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    interpolation="bicubic",
    crop_pct=0.875,
    class_names=("cat", "dog"),
    num_classes=2,
)
FACTS = CardFacts(
    name="resnet18",
    method="fbt",
    data="pets",
    start=Maker("resnet18", "random", None),
    teachers=(Maker("vit_tiny", "pretrained weights", "apache-2.0", top1=91.0),),
    parameters=1234567,
    signature=SIGNATURE,
    library="timm",
    top1=90.5,
    agreement=93.25,
    num_samples=400,
    seed=3,
    epochs=5,
    train_samples=1600,
    versions={"torch": "2.9"},
)
HOSTILE = [
    "<script>alert(1)</script>",
    "two\nlines\n---\nlicense: mit",
    '"quoted": [yes, {',
    "`code` | **bold** [a](javascript:b)",
    "# heading",
    "&lt;b&gt;",
]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def body_outside_code(card: str) -> str:
    body = card.split("---\n", 2)[2]
    assert body.count("`") % 2 == 0
    return "".join(body.split("`")[::2])


def test_the_hub_reads_the_front_matter_and_nothing_is_invented():
    data = ModelCard(model_card(FACTS)).data.to_dict()
    assert data["library_name"] == "timm"
    assert data["license"] == "unknown"
    assert data["pipeline_tag"] == "image-classification"
    assert "anykd" in data["tags"]


def test_numbers_come_with_their_count_and_seed():
    card = model_card(FACTS)
    assert "| this student | 90.50 |" in card
    assert "| teacher `vit_tiny` | 91.00 |" in card
    assert "93.25" in card
    assert "On 400 held-out images, one training with seed 3." in card


def test_what_is_not_known_is_said():
    card = model_card(FACTS)
    assert "teacher `vit_tiny`, weights pretrained weights: `apache-2.0`" in card
    assert "student `resnet18`, weights random: not known" in card
    bare = model_card(replace(FACTS, top1=None, agreement=None, num_samples=None))
    assert "It was not scored" in bare


def test_a_control_names_no_teacher():
    card = model_card(replace(FACTS, teachers=(), method="control"))
    assert "with labels alone" in card
    assert "anykd train recipe.toml" in card


@pytest.mark.parametrize(
    ("library", "word"),
    [
        ("timm", "timm.create_model"),
        ("transformers", "from_pretrained"),
        ("anykd", "create_staged"),
    ],
)
def test_it_says_who_loads_it(library, word):
    assert word in model_card(replace(FACTS, library=library))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text_wherever_it_stands(name):
    hostile = replace(
        FACTS,
        name=name,
        data=name,
        method=name,
        start=Maker(name, name, name),
        teachers=(Maker(name, name, name, top1=1.0),),
        signature=replace(SIGNATURE, class_names=(name, "dog")),
        versions={name: name},
    )
    card = model_card(hostile)
    assert ModelCard(card).data.to_dict()["license"] == "unknown"
    assert len(card.splitlines()) == len(model_card(FACTS).splitlines())
    plain = body_outside_code(card)
    parser = Tags()
    parser.feed(plain)
    assert parser.tags == []
    assert "](javascript" not in plain
    # No name adds a cell to a table.
    assert {line.count("|") for line in card.splitlines() if line.startswith("|")} == {3}


def test_many_classes_are_not_all_listed():
    names = tuple(f"class {number}" for number in range(1000))
    card = model_card(replace(FACTS, signature=replace(SIGNATURE, class_names=names)))
    assert "1000 classes" in card
    assert "and 950 more" in card
