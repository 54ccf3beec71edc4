"""Every recipe that the repository ships."""

import re
from pathlib import Path

import pytest

from anykd.recipe import Recipe, read_toml

ROOT = Path(__file__).parents[1]
PATHS = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.toml"))


@pytest.fixture(params=PATHS, ids=str)
def path(request) -> Path:
    return request.param


def test_there_are_recipes_for_the_demo_and_for_cifar100():
    assert {path.parts[1] for path in PATHS} >= {"demo", "cifar100"}


def test_recipe_is_valid(path):
    recipe = Recipe.from_dict(read_toml(ROOT / path))
    assert (not recipe.teachers) == (recipe.method_name == "control")


def test_recipe_says_in_its_head_what_it_is_and_how_it_is_run(path):
    head = (ROOT / path).read_text().partition("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert re.fullmatch(r"# .+\.", head[0])
    assert any(
        re.match(rf"#   anykd (train|distill) {re.escape(path.as_posix())}( |$)", line)
        for line in head
    )
