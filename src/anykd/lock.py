"""One process at a time in a folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anykd.errors import CheckpointError
from anykd.files import written

__all__ = ["held", "is_lock"]

_NAME = ".anykd.lock"
_held: set[Path] = set()
"""Folders of this process: the system refuses a lock to other processes alone."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, for as long as this one is in it or lives.

    The lock is of POSIX's kind: the system ends it with the process, however that ends, and forked
    workers do not inherit it, so one that outlives its parent for a moment does not keep the next
    process out. Where the file system has no locks, nobody is kept out.

    Args:
        folder: It exists. While it is held there is a file with process and host in it.

    Raises:
        CheckpointError: If a process holds it, or nothing may be written to it.
    """
    folder = folder.resolve()
    path = folder / _NAME
    if folder in _held:
        raise _in_use(folder, _this_process())
    with written(folder):
        number = _lock(path)
    _held.add(folder)
    try:
        with written(folder):
            os.truncate(number, 0)
            os.write(number, _this_process().encode())
        yield
    finally:
        _held.remove(folder)
        with suppress(OSError):  # with the folder itself
            path.unlink()
        os.close(number)


def is_lock(path: Path) -> bool:
    """Whether a file is there for `held` alone."""
    return path.name == _NAME


def _lock(path: Path) -> int:
    """Open a file and lock it, whole and under its name."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                holder = os.read(number, 200).decode(errors="replace")
                os.close(number)
                raise _in_use(path.parent, holder or "another process") from error
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                os.close(number)
                raise
        # Its last holder may have unlinked it between these two calls.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), path.stat()):
                return number
        os.close(number)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(folder: Path, holder: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} is in use by {holder}",
        hint="wait for it or end it, or give another folder: --out DIR",
    )
