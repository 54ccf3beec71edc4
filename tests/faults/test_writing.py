"""A disk that is full or read-only: one sentence, and the last checkpoint stays whole."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiment.runs import CNN, DATA, Outcome, anykd, short
from tests.faults.processes import checkpoints, student, trace, typed

EPOCHS = 4
TRAIN = ("train", "--model", "resnet18", "--data", DATA)


def train(out: Path, *flags: str) -> Outcome:
    return anykd(*TRAIN, "-o", out, *short(CNN, "train.log_every=1", epochs=EPOCHS), *flags)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train(path).code == 0
    return path


class Disk:
    """A small file system in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "tmpfs", "-o", "size=1m")

    def _mount(self, *options: str) -> None:
        done = subprocess.run(["mount", *options, self.path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")

    def resize(self, num_bytes: int) -> None:
        self._mount("-o", f"remount,size={num_bytes}")

    def make_read_only(self) -> None:
        self._mount("-o", "remount,ro")


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], capture_output=True)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def require_same(run: Path, other: Path) -> None:
    assert trace(run) == trace(other)
    assert student(run) == student(other)


class TestFullDisk:
    def test_ends_a_run_in_words_that_goes_on_where_there_is_room(self, uninterrupted, disk):
        size = sum(file.stat().st_size for file in files_in(checkpoints(uninterrupted)[-1]))
        disk.resize(int(3.1 * size))  # two checkpoints, and the best weights, but no third
        run = disk.path / "run"

        done = train(run)
        assert done.code == 2
        third = run / "checkpoint" / "step-00000012"
        assert f"error: {third} cannot be written: no space is left on its disk\n" in done.err
        assert "hint: make room there and continue with --resume" in done.err
        assert "Traceback" not in done.err
        assert [path.name for path in checkpoints(run)] == ["step-00000004", "step-00000008"]
        assert not list(run.rglob(".anykd*"))  # nothing half-written takes room

        disk.resize(10 * size)
        done = anykd("train", "-o", run, "--resume")
        assert done.code == 0, done.err
        require_same(run, uninterrupted)

    def test_where_not_even_the_recipe_fits(self, disk):
        (disk.path / "full").write_bytes(bytes(2**20 - 4096))
        done = train(disk.path / "run")
        assert done.code == 2
        assert "cannot be written: no space is left on its disk" in done.err


def test_a_file_that_may_not_grow_ends_a_run_in_words(uninterrupted, tmp_path):
    run = tmp_path / "run"
    flags = short(CNN, "train.log_every=1", epochs=EPOCHS)
    with typed(*TRAIN, "-o", run, *flags, file_bytes=100_000) as child:
        done = child.outcome()
    assert done.code == 2
    assert "cannot be written: it would be larger than a file may be here\n" in done.err
    assert "ulimit -f" in done.err
    assert not checkpoints(run)
    assert not list(run.rglob(".anykd*"))
    done = anykd("train", "-o", run, "--resume")  # the limit has gone
    assert done.code == 0, done.err
    require_same(run, uninterrupted)


class TestReadOnly:
    def test_is_said_before_anything_is_trained(self, disk):
        disk.make_read_only()
        done = train(disk.path / "run")
        assert done.code == 2
        assert done.err.startswith(f"error: {disk.path / 'run'} cannot be written: its file system")
        assert "hint: give a folder that can be written: --out DIR" in done.err

    def test_a_path_under_a_file_is_said_too(self, tmp_path):
        (tmp_path / "file").touch()
        done = train(tmp_path / "file" / "run")
        assert done.code == 2
        assert "a part of this path is a file, no folder" in done.err
        assert (tmp_path / "file").read_bytes() == b""
