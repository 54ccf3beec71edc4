"""``anykd report``: one page about one run or many."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or folders that contain some.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """Write one HTML page about runs: what distillation gave, why, and how to repeat it.

    Runs that differ in their seed alone are taken together. The page needs no network.
    """
    from anykd.report import build_report

    typer.echo(build_report(runs, out))
