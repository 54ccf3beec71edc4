"""What the guides tell people to type works."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from anykd.cli import app
from anykd.models import create_staged

GUIDES = sorted((Path(__file__).parents[1] / "docs" / "guides").glob("*.md"))
BLOCKS = [
    (guide.stem, language, block)
    for guide in GUIDES
    for language, block in re.findall(r"```(\w*)\n(.*?)```", guide.read_text(), re.DOTALL)
]
PYTHON = [(guide, block) for guide, language, block in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(found[1])
    for _, language, block in BLOCKS
    if language in ("", "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if (found := re.search(r"(?:^|torchrun .* -m )anykd ([^&]*)", line))
]


SCRIPTS = [block for _, language, block in BLOCKS if language == "bash"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_one_that_bash_takes(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("guide", "block"), PYTHON, ids=[guide for guide, _ in PYTHON])
def test_every_python_block_runs(guide, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, f"{guide}.md", "exec"), {"__name__": "guide"})


@pytest.mark.parametrize(("file", "factory"), [("my_nets.py", "make"), ("small_mlp.py", "resmlp")])
def test_a_model_of_a_file_is_taken_apart_by_its_name(file, factory, tmp_path):
    (block,) = [block for _, block in PYTHON if block.startswith(f"# {file}")]
    (tmp_path / file).write_text(block)
    staged = create_staged(f"{tmp_path / file}:{factory}", num_classes=7, image_size=32)
    assert (staged.num_classes, len(staged.shapes), staged.has_tail) == (7, 4, True)


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:3]))
def test_every_command_is_one_that_the_parser_takes(arguments):
    command, rest = typer.main.get_command(app), list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]  # pyright: ignore[reportAttributeAccessIssue]
    command.make_context(arguments[0], rest)
