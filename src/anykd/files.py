"""How files are written so that none is ever half there, and what is said where they cannot be."""

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from anykd.errors import CheckpointError

__all__ = [
    "expanded",
    "finite",
    "json_text",
    "make_folder",
    "remove_unfinished",
    "sync",
    "unfinished",
    "write_atomically",
    "written",
]

_UNFINISHED = ".anykd-"
"""Begins the names of what is being written; behind a killed process such a folder stays."""

_ELSEWHERE = "give a folder that can be written: --out DIR"
_NOT_ALLOWED = ("this user may not write there", f"change its owner or mode, or {_ELSEWHERE}")
_NO_FOLDER = ("a part of this path is a file, no folder", _ELSEWHERE)
_RESUME = "continue with --resume; the last checkpoint is whole"
_REASONS = {
    errno.ENOSPC: ("no space is left on its disk", f"make room there and {_RESUME}"),
    errno.EDQUOT: ("the disk quota is used up", f"make room within it and {_RESUME}"),
    errno.EFBIG: (
        "it would be larger than a file may be here",
        f"raise that limit (ulimit -f), or use another file system, and {_RESUME}",
    ),
    errno.EROFS: ("its file system is read-only", _ELSEWHERE),
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.ENOENT: ("its folder is gone", _ELSEWHERE),
}


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Say in words what keeps a file from being written.

    Args:
        path: What the body writes; named in the message.

    Raises:
        CheckpointError: In the place of what the operating system said, also where safetensors or
            ``torch.distributed.checkpoint`` pass it on in a form of their own.
    """
    try:
        yield
    # The exception of torch.distributed.checkpoint is no Exception.
    except BaseException as error:
        number = _errno(error)
        if number is None:
            raise
        reason, hint = _REASONS.get(number, (os.strerror(number).lower(), f"mend it and {_RESUME}"))
        raise CheckpointError(f"{path} cannot be written: {reason}", hint=hint) from error


def _errno(error: BaseException) -> int | None:
    """The number of the operating system's error, or None where it is none."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else None
    failures = getattr(error, "failures", {})  # of torch.distributed.checkpoint, by rank
    numbers = (_errno(failure) for failure, _ in failures.values())
    return next((number for number in numbers if number is not None), None)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder under another name, and put it in place whole and on the disk.

    Args:
        path: Where it goes; what is there is replaced.
        write: Writes the file or folder to the path that it is given.

    Raises:
        CheckpointError: If it cannot be written; what was there before still is.
    """
    with written(path):
        make_folder(path.parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{path.name}-", dir=path.parent))
        try:
            new = folder / path.name
            write(new)
            (folder / "any").touch()  # safetensors lets the owner alone read what it writes
            for part in [new, *new.rglob("*")]:
                if part.is_file():
                    part.chmod((folder / "any").stat().st_mode)
                sync(part)
            if path.is_dir():
                path.rename(folder / "old")
            new.replace(path)
            sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def unfinished(path: Path) -> Path:
    """What a folder is called while several processes write it together."""
    return path.with_name(f"{_UNFINISHED}{path.name}")


def remove_unfinished(folder: Path) -> None:
    """Take away what killed processes left half-written in a folder that nobody writes to now."""
    for left in folder.glob(f"{_UNFINISHED}*/"):
        shutil.rmtree(left, ignore_errors=True)


def finite(value: Any) -> Any:
    """Plain values with None in the place of NaN and infinity, which JSON does not have.

    Args:
        value: Of dicts, lists and tuples, the latter as lists then.
    """
    if isinstance(value, dict):
        return {key: finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(values: Any, *, indent: int | None = 2) -> str:
    """Plain values as JSON that every reader takes: None stands where there is no number.

    Args:
        values: Of dicts, lists, tuples, text and numbers.
        indent: Of the lines; None writes one line.
    """
    return json.dumps(finite(values), indent=indent, allow_nan=False)


def expanded(path: str | Path) -> Path:
    """A path as a person types it: ``~`` and ``~NAME`` are homes, where there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it, on the disk.

    Returns:
        Those that were not there, the uppermost first.
    """
    if folder.is_dir():
        return []
    above = make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_dir():  # another process was faster
            return above
        raise
    except FileNotFoundError:
        if folder.parent.is_dir():  # as in /proc, where nothing can be made
            raise
        return make_folder(folder)  # another process that came to nothing took away what is above
    sync(folder.parent)
    return [*above, folder]


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network file systems know no such thing for folders.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(number)
