"""What the README tells people to type works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from anykd.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line)[1:]
    for language, block in BLOCKS
    if not language
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("anykd ")
]


def test_the_library_in_ten_lines_trains_a_step():
    code = next(block for language, block in BLOCKS if "build_method" in block)
    scope: dict = {}

    exec(compile(code, "README.md", "exec"), scope)

    assert {"task", "fusion_student_ofa"} <= set(scope["output"].terms)
    assert len(code.splitlines()) <= 15


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_every_command_is_one_that_the_parser_takes(arguments):
    command, rest = typer.main.get_command(app), list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]  # pyright: ignore[reportAttributeAccessIssue]
    command.make_context(arguments[0], rest)


def test_there_are_commands_to_check():
    assert {arguments[0] for arguments in COMMANDS} >= {"plan", "distill", "evaluate"}


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_every_link_leads_to_a_file(target):
    assert (ROOT / target).exists()


def test_tables_of_results_follow_from_their_data():
    script = ROOT / "docs" / "results" / "results.py"
    done = subprocess.run(
        [sys.executable, str(script), "render", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
