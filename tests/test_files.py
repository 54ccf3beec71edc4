"""Files are whole or not there, and what keeps them from being written is said in words."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from anykd.errors import CheckpointError
from anykd.files import expanded, json_text, make_folder, write_atomically, written


def everything(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def torn(path: Path) -> None:
    path.write_text("half")
    raise OSError("no space left")


def torn_folder(path: Path) -> None:
    path.mkdir()
    torn(path / "a")


def folder_with(*names: str):
    def write(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_text("new")

    return write


class TestWriteAtomically:
    def test_makes_the_folders_above(self, tmp_path):
        write_atomically(tmp_path / "a" / "b", folder_with("file"))
        assert everything(tmp_path) == {"a/b/file": "new"}

    @pytest.mark.parametrize("write", [torn, torn_folder])
    def test_what_fails_leaves_the_old_file_and_no_litter(self, tmp_path, write):
        (tmp_path / "file").write_text("old")
        with pytest.raises(OSError, match="no space"):
            write_atomically(tmp_path / "file", write)
        assert everything(tmp_path) == {"file": "old"}
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_what_fails_leaves_the_old_folder(self, tmp_path):
        write_atomically(tmp_path / "student", folder_with("a"))
        with pytest.raises(OSError, match="no space"):
            write_atomically(tmp_path / "student", torn_folder)
        assert everything(tmp_path) == {"student/a": "new"}

    def test_a_folder_is_replaced_whole(self, tmp_path):
        write_atomically(tmp_path / "student", folder_with("a", "b"))
        write_atomically(tmp_path / "student", folder_with("b", "c"))
        assert set(everything(tmp_path)) == {"student/b", "student/c"}
        assert [path.name for path in tmp_path.iterdir()] == ["student"]

    def test_the_old_file_is_there_until_the_new_one_is_whole(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("old")

        def write(new: Path) -> None:
            new.write_text("new")
            assert path.read_text() == "old"

        write_atomically(path, write)
        assert everything(tmp_path) == {"file": "new"}


class TestWritten:
    @pytest.mark.parametrize(
        ("number", "reason"),
        [
            (errno.ENOSPC, "no space is left on its disk"),
            (errno.EDQUOT, "the disk quota is used up"),
            (errno.EFBIG, "it would be larger than a file may be here"),
            (errno.EROFS, "its file system is read-only"),
            (errno.EACCES, "this user may not write there"),
            (errno.EPERM, "this user may not write there"),
            (errno.ENOTDIR, "a part of this path is a file, no folder"),
            (errno.ENOENT, "its folder is gone"),
            (errno.EIO, "input/output error"),
        ],
    )
    def test_says_what_keeps_a_file_from_being_written(self, tmp_path, number, reason):
        with pytest.raises(CheckpointError) as caught, written(tmp_path / "a"):
            raise OSError(number, os.strerror(number))
        assert str(caught.value) == f"{tmp_path / 'a'} cannot be written: {reason}"
        assert caught.value.hint

    def test_knows_what_safetensors_makes_of_it(self, tmp_path):
        path = tmp_path / "missing" / "a"
        with pytest.raises(CheckpointError, match="its folder is gone"), written(path):
            save_file({"a": torch.zeros(1)}, path)

    def test_knows_what_torch_makes_of_it(self, tmp_path):
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "a"
        with (
            pytest.warns(UserWarning, match="in a single process"),
            pytest.raises(CheckpointError, match="a part of this path is a file"),
            written(path),
        ):
            dcp.save({"a": torch.zeros(1)}, checkpoint_id=path)

    @pytest.mark.parametrize("error", [OSError("no number"), KeyError("a"), KeyboardInterrupt()])
    def test_leaves_alone_what_is_no_error_of_writing(self, tmp_path, error):
        with pytest.raises(type(error)) as caught, written(tmp_path / "a"):
            raise error
        assert caught.value is error


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "checkpoint" / "student", []
    real = os.fsync

    def sync(number: int) -> None:
        synced.append((Path(f"/proc/self/fd/{number}").readlink(), path.exists()))
        real(number)

    monkeypatch.setattr("os.fsync", sync)
    write_atomically(path, folder_with("a"))
    names = [(file.name, there) for file, there in synced]
    # A folder that is new has its name in the one above it; so has, at the end, what was written.
    assert names == [
        (tmp_path.name, False),
        ("student", False),
        ("a", False),
        ("checkpoint", True),
    ]


def test_files_have_the_mode_of_any_other(tmp_path):
    def write(new: Path) -> None:
        new.mkdir()
        save_file({"a": torch.zeros(1)}, new / "a")

    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "student", write)
        assert (tmp_path / "student" / "a").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_home_that_nobody_has_is_a_name_like_others():
    assert expanded("~") == Path.home()
    assert expanded("~nobody-is-called-so/x") == Path("~nobody-is-called-so/x")


def test_a_folder_that_cannot_be_made_is_refused_and_not_tried_for_ever():
    with pytest.raises(FileNotFoundError):
        make_folder(Path("/proc/anykd/x"))


@pytest.mark.parametrize("indent", [2, None])
def test_what_json_cannot_say_is_null(indent):
    values = {"a": [float("nan"), 1.5, float("-inf")], "b": (True, None, "nan"), "c": {"d": 1e999}}
    text = json_text(values, indent=indent)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, 1.5, None],
        "b": [True, None, "nan"],
        "c": {"d": None},
    }
    assert ("\n" in text) == (indent is not None)
