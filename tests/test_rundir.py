import json
from pathlib import Path

import pytest

from anykd.errors import CheckpointError
from anykd.rundir import RunDir, write_atomically


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


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path / "run")


def refusal(check) -> tuple[str, str]:
    with pytest.raises(CheckpointError) as caught:
        check()
    return str(caught.value), caught.value.hint


class TestRequireNew:
    def test_takes_a_folder_that_is_missing_or_empty(self, run):
        run.require_new()
        run.path.mkdir()
        run.require_new()
        assert not any(run.path.iterdir())

    def test_refuses_a_finished_run(self, run):
        run.write_json(run.summary, {})
        assert refusal(run.require_new) == (
            f"{run.path} holds a finished run",
            "give another folder: --out DIR",
        )

    def test_offers_to_continue_an_unfinished_run(self, run):
        run.write_text(run.recipe, "")
        run.write_text(run.last, "")
        message, hint = refusal(run.require_new)
        assert message == f"{run.path} holds an unfinished run"
        assert "--resume" in hint

    def test_takes_a_run_that_ended_before_its_first_checkpoint(self, run):
        run.write_text(run.recipe, "")
        run.require_new()

    def test_refuses_a_folder_of_something_else(self, run):
        run.write_text(run.path / "thesis.tex", "")
        assert refusal(run.require_new)[0] == f"{run.path} is not empty"

    def test_refuses_a_file(self, run):
        run.path.touch()
        assert refusal(run.require_new)[0] == f"{run.path} is a file"


class TestRequireUnfinished:
    def test_takes_a_run_with_a_checkpoint(self, run):
        run.write_text(run.last, "")
        run.require_unfinished()

    def test_refuses_a_finished_run(self, run):
        run.write_text(run.last, "")
        run.write_json(run.summary, {})
        message, hint = refusal(run.require_unfinished)
        assert message == f"{run.path} is finished, there is nothing to resume"
        assert str(run.summary) in hint

    def test_refuses_a_folder_without_a_checkpoint(self, run):
        assert refusal(run.require_unfinished) == (
            f"{run.path} has no checkpoint to resume from",
            "start it without --resume",
        )


class TestMetrics:
    def test_are_one_line_each(self, run):
        run.path.mkdir()
        lines = [{"event": "step", "epoch": 0, "loss": 1.5}, {"event": "epoch", "epoch": 0}]
        for line in lines:
            run.log(line)
        assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == lines

    def test_of_later_epochs_and_torn_lines_are_dropped(self, run):
        run.path.mkdir()
        for epoch in (0, 0, 1, 2):
            run.log({"epoch": epoch})
        with run.metrics.open("a") as file:
            file.write('{"epoch": 1, "lo')
        run.keep_metrics(epochs=2)
        assert run.metrics.read_text() == '{"epoch": 0}\n{"epoch": 0}\n{"epoch": 1}\n'

    def test_need_not_be_there(self, run):
        run.keep_metrics(epochs=2)
        assert not run.path.exists()


def test_summary_is_read_back_or_missed(run):
    assert refusal(run.read_summary)[0] == f"{run.path} has no summary.json"
    run.write_json(run.summary, {"top1": 81.61})
    assert run.finished
    assert run.read_summary() == {"top1": 81.61}


class TestTeachers:
    def test_have_names_by_number(self, tmp_path):
        directory = RunDir(tmp_path)
        assert directory.teacher(1).path == tmp_path / "teacher"
        assert directory.teacher(2).path == tmp_path / "teacher_2"
        assert directory.teacher_head(1) == tmp_path / "teacher_head.safetensors"
        assert directory.teacher_head(2) == tmp_path / "teacher_2_head.safetensors"

    def test_that_are_being_trained_are_something_to_resume(self, tmp_path):
        directory = RunDir(tmp_path)
        directory.write_text(directory.recipe, "")
        directory.require_new()  # it came to nothing
        directory.teacher(2).path.mkdir()
        directory.require_unfinished()
        with pytest.raises(CheckpointError, match="holds an unfinished run"):
            directory.require_new()

    def test_of_which_only_the_head_was_kept_are_not(self, tmp_path):
        directory = RunDir(tmp_path)
        directory.write_text(directory.recipe, "")
        directory.teacher_head(1).write_text("")
        directory.require_new()
