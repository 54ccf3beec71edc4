"""Which runs a person means who names folders."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from anykd.errors import CheckpointError
from anykd.files import expanded

from .record import RunRecord, read_run

__all__ = ["find_runs"]

_DEPTH = 3
"""Folders below a named one in which runs are looked for, such as ``runs/demo/kd_seed0``."""


def find_runs(paths: Iterable[str | Path]) -> list[RunRecord]:
    """Read runs, each once.

    Args:
        paths: Run directories, and folders that contain some. The runs inside a run, such as that
            of its teacher, are not looked for.

    Raises:
        CheckpointError: If a folder is missing or there is no run in it, or a run is broken.
    """
    folders: dict[Path, Path] = {}
    for path in map(expanded, paths):
        if not path.exists():
            raise CheckpointError(f"there is no {path}", hint="give the --out folder of a training")
        found = list(_runs_below(path, _DEPTH))
        if not found:
            raise CheckpointError(
                f"{path} is no run and contains none",
                hint="give the --out folder of a training, or a folder of such folders",
            )
        folders |= {folder.resolve(): folder for folder in found}
    return [read_run(folders[key]) for key in sorted(folders)]


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if not folder.is_dir():
        return
    if (folder / "recipe.toml").is_file():
        if not (folder / "manifest.json").is_file():  # which a cache of a teacher's outputs has
            yield folder
        return
    if depth:
        for below in sorted(folder.iterdir()):
            if not below.name.startswith("."):
                yield from _runs_below(below, depth - 1)
