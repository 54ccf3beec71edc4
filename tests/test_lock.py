"""A folder is one process's at a time, to whatever end that process comes."""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anykd.errors import CheckpointError
from anykd.lock import held


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A process that does something and then waits to be killed."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        kept = work()
        os.write(writer, b"done")
        time.sleep(60)
        os._exit(kept is None)
    try:
        assert os.read(reader, 4) == b"done"
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reader)
        os.close(writer)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        held(folder).__enter__()
    assert "--out DIR" in caught.value.hint
    return str(caught.value)


def test_another_process_is_named_and_its_end_frees_the_folder(tmp_path):
    lock = held(tmp_path)
    with child(lock.__enter__) as process:
        assert refused(tmp_path) == f"{tmp_path} is in use by process {process} on {os.uname()[1]}"
        assert refused(tmp_path).endswith(os.uname()[1])  # asking once changed nothing
    with held(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_the_same_process_is_refused_under_any_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with held(tmp_path):
        assert f"process {os.getpid()} on" in refused(tmp_path / "link")
    with held(tmp_path / "link"):
        pass


def test_a_worker_that_outlives_its_parent_does_not_hold_the_folder(tmp_path):
    def with_worker() -> object:
        lock = held(tmp_path)
        lock.__enter__()
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        (tmp_path / "worker").write_text(str(worker))
        return lock

    with child(with_worker):
        assert "is in use by" in refused(tmp_path)
    worker = int((tmp_path / "worker").read_text())
    try:
        os.kill(worker, 0)  # it lives
        with held(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_that_was_unlinked_meanwhile_is_no_lock(tmp_path, monkeypatch):
    # The last holder unlinks the file between the opening and the locking of the next one.
    real, calls = fcntl.lockf, []

    def lockf(number: int, kind: int) -> None:
        calls.append(number)
        if len(calls) == 1:
            (tmp_path / ".anykd.lock").unlink()
        real(number, kind)

    monkeypatch.setattr("fcntl.lockf", lockf)
    with held(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / ".anykd.lock").is_file()


def test_where_the_file_system_has_no_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    def lockf(number: int, kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    with held(tmp_path):
        assert (tmp_path / ".anykd.lock").is_file()
