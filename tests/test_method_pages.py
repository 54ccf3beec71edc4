"""Every method has a page and a recipe, and what they say follows from the code."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from anykd import losses
from anykd.methods import METHODS
from anykd.recipe import Recipe, read_toml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"
PAGES = sorted(FOLDER.glob("*.md"))
SECTIONS = [
    "Formula",
    "When to take it",
    "Fields",
    "Cost",
    "What it needs",
    "Published numbers",
    "Departures from the paper",
]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


@pytest.fixture
def page(name) -> str:
    return (FOLDER / f"{name}.md").read_text()


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_every_page_is_one_of_a_method():
    assert {path.stem for path in PAGES} == {*METHODS, "README"}


def test_page_has_the_sections_in_their_order(name, page):
    assert page.startswith(f"# {name}: ")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS


def test_page_holds_the_table_of_its_own_fields(name, page):
    assert re.findall(r"^<!-- fields (\w+) -->$", section(page, "Fields"), re.MULTILINE) == [name]


def load_script() -> Any:
    """The script as a module: a process of its own would import torch and timm once more."""
    spec = importlib.util.spec_from_file_location("fields", FOLDER / "fields.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_follow_from_the_code(capsys):
    stale = load_script().render(check=True)
    assert not stale, capsys.readouterr().err


def test_a_stale_table_is_seen_and_mended(tmp_path):
    script = load_script()
    script.HERE = tmp_path
    page = (FOLDER / "kd.md").read_text()
    changed = page.replace("| `temperature` | `1.0` |", "| `heat` | `2.0` |")
    assert changed != page
    (tmp_path / "kd.md").write_text(changed)

    assert script.render(check=True) == 1
    assert (tmp_path / "kd.md").read_text() == changed
    assert script.render(check=False) == 0
    assert (tmp_path / "kd.md").read_text() == page


def test_every_name_in_a_formula_is_a_field_or_a_loss(name, page):
    named = re.findall(r"`([a-z]\w*)(?: = [^`]+)?`", section(page, "Formula"))
    assert "task_weight" in named
    assert {*named} <= {*METHODS[name].Config.model_fields, *losses.__dict__}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_formulas_have_nothing_that_github_reads_as_markdown(path):
    """Within maths it takes a backslash before punctuation away, and ``*`` for emphasis."""
    text = path.read_text()
    formulas = re.findall(r"\$\$\n(.*?)\n\$\$", text, re.DOTALL)
    assert formulas
    assert text.count("$$") == 2 * len(formulas)
    inline = re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", re.sub(r"\$\$.*?\$\$", "", text, flags=re.S))
    for formula in formulas + inline:
        assert not re.search(r"\\[^A-Za-z]|[*<>]|\\operatorname", formula), formula
        assert formula.count("{") == formula.count("}"), formula


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = LINK.findall(path.read_text())
    assert links
    for target, anchor in links:
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_a_recipe_of_the_method_is_shipped_and_linked(name, page):
    shipped = {path.name for path in (ROOT / "recipes" / "cifar100").glob(f"{name}_*.toml")}
    assert shipped
    linked = {Path(target).name for target, _ in LINK.findall(page)}
    assert shipped & linked


def test_recipes_that_need_several_methods_are_shipped():
    recipes = [Recipe.from_dict(read_toml(path)) for path in (ROOT / "recipes").rglob("*.toml")]
    assert any(len(recipe.methods) > 1 for recipe in recipes)


def test_every_example_in_the_overview_is_a_recipe():
    text = (FOLDER / "README.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        given = {"data": {"source": "digits"}, "teacher": {"name": "runs/teacher"}}
        Recipe.from_dict(given | {"student": {"name": "resnet18"}} | tomllib.loads(example))
