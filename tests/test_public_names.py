"""The names that DESIGN fixes for people's own programs."""

import importlib
import inspect
import subprocess
import sys

import pytest

import anykd

EMPTY = inspect.Parameter.empty
POSITIONAL, KEYWORD = "positional", "keyword"


def arguments(function: object) -> list[tuple[str, str, object]]:
    """Name, kind and default of each argument."""
    assert callable(function)
    kinds = {
        inspect.Parameter.POSITIONAL_OR_KEYWORD: POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY: KEYWORD,
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, kinds[p.kind], p.default) for p in parameters]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("losses", ["kd_loss", "ofa_loss", "info_nce_loss"]),
        ("models", ["StagedModel", "FrozenTeacher", "StoredTeacher", "create_staged"]),
        ("methods", ["METHODS", "build_method"]),
        ("types", ["Batch", "Features", "StepOutput", "Stored"]),
        ("errors", ["AnykdError", "RecipeError", "ModelError", "DataError", "CheckpointError"]),
    ],
)
def test_names_can_be_imported(module, names):
    found = importlib.import_module(f"anykd.{module}")
    assert [name for name in names if not hasattr(found, name)] == []


def test_package_offers_what_it_lists():
    assert {"distill", "__version__"} <= set(anykd.__all__)
    assert [name for name in anykd.__all__ if not hasattr(anykd, name)] == []
    assert anykd.losses is importlib.import_module("anykd.losses")


def test_package_says_what_it_has_not():
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        anykd.distil  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_methods_are_called_as_in_the_papers():
    from anykd.methods import METHODS

    assert set(METHODS) >= {"control", "kd", "ofa", "fbt"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "kd_loss",
            [
                ("student_logits", POSITIONAL, EMPTY),
                ("teacher_logits", POSITIONAL, EMPTY),
                ("temperature", KEYWORD, 1.0),
            ],
        ),
        (
            "ofa_loss",
            [
                ("student_logits", POSITIONAL, EMPTY),
                ("teacher_logits", POSITIONAL, EMPTY),
                ("labels", POSITIONAL, EMPTY),
                ("gamma", KEYWORD, 1.0),
                ("temperature", KEYWORD, 1.0),
                ("form", KEYWORD, "code"),
            ],
        ),
        (
            "info_nce_loss",
            [
                ("student_vectors", POSITIONAL, EMPTY),
                ("teacher_vectors", POSITIONAL, EMPTY),
                ("temperature", KEYWORD, EMPTY),
            ],
        ),
    ],
)
def test_losses_have_the_arguments_of_the_design(name, expected):
    assert arguments(getattr(importlib.import_module("anykd.losses"), name)) == expected


def test_builders_have_the_arguments_of_the_design():
    from anykd.methods import build_method
    from anykd.models import create_staged

    built = {name: (kind, default) for name, kind, default in arguments(create_staged)}
    assert built["name"] == (POSITIONAL, EMPTY)
    assert {"num_classes", "image_size", "pretrained"} <= set(built)
    assert built["pretrained"] == (KEYWORD, False)
    assert built["options"][0] == "**"
    names = [name for name, _, _ in arguments(build_method)]
    assert names == ["name", "student", "teacher", "options"]


def test_distill_takes_names_by_keyword_and_any_option():
    found = {name: kind for name, kind, _ in arguments(anykd.distill)}
    assert {found[name] for name in ("teacher", "student", "data", "method")} == {KEYWORD}
    assert found["options"] == "**"


def test_batch_and_output_have_the_fields_of_the_design():
    from anykd.types import Batch, Features, StepOutput

    fields = [("images", EMPTY), ("labels", None), ("indices", None), ("stored", ())]
    assert [(name, default) for name, _, default in arguments(Batch)] == fields
    assert {"stages", "prefixes", "pooled", "logits"} <= set(Features.__annotations__)
    assert {"logits", "terms"} <= set(StepOutput.__annotations__)
    assert isinstance(inspect.getattr_static(StepOutput, "loss"), property)


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, anykd, anykd.cli; print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
