"""Processes that build a cache, and come to their end before it does."""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

_WRITING = {
    *("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"),
    *("shutil.rmtree", "tempfile.mkdtemp"),
}
"""What Python tells of before it does it, among what changes a folder."""


def started(work: Callable[[], object]) -> int:
    """Start a process that does something; it ends with status 1 where that fails.

    Returns:
        Its number.
    """
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return process


def ended(process: int) -> int:
    """Wait for the end of a process.

    Returns:
        Its status; below 0 the signal that ended it.
    """
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_before(event: int, work: Callable[[], object]) -> bool:
    """Do something in a process that is killed before it touches a file for the so-manieth time.

    Returns:
        Whether it was; if not, it did its work with fewer.
    """

    def counted() -> None:
        left = event

        def audit(name: str, _: tuple[Any, ...]) -> None:
            nonlocal left
            if name in _WRITING and (left := left - 1) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        work()

    status = ended(started(counted))
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def with_small_files(most: int, work: Callable[[], object]) -> None:
    """Do something in a process whose files may have so many bytes at most; it must succeed."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        work()

    assert ended(started(limited)) == 0
