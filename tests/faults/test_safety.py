"""Nothing that is read can execute: no weights, checkpoint or recipe; and there is no shell."""

import ast
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import anykd as package
from tests.experiment.runs import CNN, DATA, anykd, short

SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def name_of(node: ast.expr) -> str:
    """A dotted name, such as ``torch.load``; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


EXECUTES = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
UNPICKLES = {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load"}
PICKLERS = {"dill", "cloudpickle", "joblib", "shelve", "marshal"}


def is_dangerous(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name in PICKLERS for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return node.module in PICKLERS or bool(names & (EXECUTES | UNPICKLES | {"torch.load"}))
    if not isinstance(node, ast.Call):
        return False
    name, options = name_of(node.func), {word.arg: word.value for word in node.keywords}
    if name == "torch.load":
        asked = options.get("weights_only")
        return not (isinstance(asked, ast.Constant) and asked.value is True)
    if name.endswith((".extract", ".extractall")):
        return "filter" not in options
    return name in EXECUTES | UNPICKLES or not options.keys().isdisjoint({"shell", "allow_pickle"})


def dangers(source: str) -> list[str]:
    """Places that execute what they are given, or write where it says."""
    nodes = [node for node in ast.walk(ast.parse(source)) if is_dangerous(node)]
    return sorted(ast.unparse(node) for node in nodes)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=maybe)",
        "pickle.loads(content)",
        "from pickle import loads",
        "import joblib",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "eval(text)",
        "yaml.load(file)",
        "archive.extractall(folder)",
    ],
)
def test_what_is_dangerous_is_found(source):
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    ["torch.load(path, weights_only=True)", "archive.extractall(folder, filter='data')"],
)
def test_what_is_not_is_let_by(source):
    assert not dangers(source)


def test_no_source_file_calls_what_could_execute_data():
    assert len(SOURCES) > 80
    found = {path.name: dangers(path.read_text()) for path in SOURCES}
    # What torch.fx wrote of a model that runs anyway.
    assert all("code.src" in call for call in found.pop("traced.py"))
    assert {name: calls for name, calls in found.items() if calls} == {}


class TestPickles:
    """Files that would run code where they are unpickled; the mark is what that code leaves."""

    @pytest.fixture
    def mark(self, tmp_path) -> Path:
        return tmp_path / "executed"

    def test_the_trap_works(self, mark):
        pickle.loads(pickle.dumps(Evil(mark)))
        assert mark.exists()

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
    def test_as_weights_are_refused(self, tmp_path, mark, suffix):
        weights = tmp_path / f"model{suffix}"
        torch.save({"state_dict": {"fc.weight": Evil(mark)}}, weights)
        done = anykd(
            *("train", "--model", "resnet18", "--data", DATA, "-o", tmp_path / "run"),
            *short(CNN, f"student.weights={weights}"),
        )
        assert done.code == 2
        assert str(weights) in done.err
        assert not mark.exists()
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_as_a_teachers_weights_are_refused(self, tmp_path, mark, suffix):
        weights = tmp_path / f"model{suffix}"
        torch.save(Evil(mark), weights)
        done = anykd(
            *("distill", "--teacher", "resnet18", "--student", "resnet18", "--data", DATA),
            *("--out", tmp_path / "run", "--set", f"teacher.weights={weights}", *short(CNN)),
        )
        assert done.code == 2
        assert not mark.exists()

    def test_as_a_recipe_are_refused(self, tmp_path, mark):
        recipe = tmp_path / "recipe.toml"
        recipe.write_bytes(pickle.dumps(Evil(mark)))
        done = anykd("distill", recipe, "-o", tmp_path / "run")
        assert done.code == 2
        assert not mark.exists()

    def test_as_files_of_a_run_are_refused(self, tmp_path, mark):
        run, good = tmp_path / "run", tmp_path / "good"
        flags = short(CNN, "train.checkpoint_every=2")
        assert anykd("train", "--model", "resnet18", "--data", DATA, "-o", good, *flags).code == 0
        (good / "summary.json").unlink()  # it is unfinished now
        for pattern in ("recipe.toml", "plan.json", "step-*/*"):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(good, run)
            files = list((run / "checkpoint" if "/" in pattern else run).glob(pattern))
            assert files
            for file in files:
                file.write_bytes(pickle.dumps(Evil(mark)))
            done = anykd("train", "-o", run, "--resume")
            assert done.code == 2, (pattern, done)
            assert "Traceback" not in done.err
            assert not mark.exists()

    def test_whose_checksums_fit_are_not_executed_either(self, tmp_path, mark):
        # Somebody who writes the manifest, too.
        run = tmp_path / "run"
        flags = short(CNN)
        assert anykd("train", "--model", "resnet18", "--data", DATA, "-o", run, *flags).code == 0
        (run / "summary.json").unlink()
        for manifest in run.rglob("manifest.json"):
            said = json.loads(manifest.read_text())
            for name in said["files"]:
                if name.endswith(".safetensors"):
                    content = pickle.dumps(Evil(mark))
                    (manifest.parent / name).write_bytes(content)
                    said["files"][name] = hashlib.sha256(content).hexdigest()
            manifest.write_text(json.dumps(said))
        done = anykd("train", "-o", run, "--resume")
        assert done.code == 2, done
        assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    ["__import__('os').system('touch executed')", "$(touch executed)", "; touch executed"],
)
def test_values_are_data_to_the_command_line(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    for key in ("student.name", "data.source", "train.optimizer", "student.options.depth"):
        done = anykd("plan", "--student", "resnet18", "--data", DATA, "--set", f"{key}={value}")
        assert done.code == 2
    assert not any(tmp_path.iterdir())
