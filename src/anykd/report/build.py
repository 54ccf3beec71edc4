"""Writes the page about runs."""

from collections.abc import Iterable
from pathlib import Path

from anykd.errors import CheckpointError
from anykd.files import expanded, write_atomically

from .find import find_runs

__all__ = ["build_report"]


def build_report(paths: Iterable[str | Path], out: str | Path) -> Path:
    """Write one HTML page about runs: it stands by itself, without network or scripts.

    Runs that differ in their seed alone are taken together, and what was trained without a teacher
    is what the others are compared with. What a run has not written is left out of the page.

    Args:
        paths: Run directories, or folders that contain some, in any order.
        out: The page; what is there is replaced.

    Returns:
        Where the page is.

    Raises:
        CheckpointError: If there is no run, one is broken, or the page cannot be written.
    """
    path = expanded(out)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder", hint=f"name a file: --out {path}/report.html")
    runs = find_runs(paths)
    # matplotlib and jinja2 take a second to import, and training reads this package too.
    from .page import render

    text = render(runs)
    write_atomically(path, lambda new: _write(new, text))
    return path


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
