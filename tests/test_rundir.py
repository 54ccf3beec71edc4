import json

import pytest

from anykd.errors import CheckpointError
from anykd.rundir import RunDir


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
        run.write_text(run.checkpoints / "step-00000001" / "state.json", "")
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
    def test_takes_a_run_that_has_begun(self, run):
        run.write_text(run.recipe, "")
        run.require_unfinished()

    def test_refuses_a_finished_run(self, run):
        run.write_text(run.recipe, "")
        run.write_json(run.summary, {})
        message, hint = refusal(run.require_unfinished)
        assert message == f"{run.path} is finished, there is nothing to resume"
        assert str(run.summary) in hint

    def test_refuses_a_folder_without_a_run(self, run):
        assert refusal(run.require_unfinished) == (
            f"{run.path} holds no run to resume",
            "start it without --resume",
        )


class TestMetrics:
    def test_are_one_line_each(self, run):
        run.path.mkdir()
        lines = [{"event": "step", "epoch": 0, "loss": 1.5}, {"event": "epoch", "epoch": 0}]
        for line in lines:
            run.log(line)
        assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == lines

    def test_behind_a_checkpoint_are_dropped_with_a_torn_line(self, run):
        run.path.mkdir()
        run.log({"epoch": 0})
        length = run.metrics_bytes()
        assert length == len('{"epoch": 0}\n')
        run.log({"epoch": 1})
        with run.metrics.open("a") as file:
            file.write('{"epoch": 1, "lo')
        run.truncate_metrics(length)
        assert run.metrics.read_text() == '{"epoch": 0}\n'

    def test_that_are_shorter_are_left_alone(self, run):
        run.path.mkdir()
        run.log({"epoch": 0})
        run.truncate_metrics(1000)
        assert run.metrics.read_text() == '{"epoch": 0}\n'

    def test_need_not_be_there(self, run):
        assert run.metrics_bytes() == 0
        run.truncate_metrics(0)
        assert not run.path.exists()


def test_summary_is_read_back_or_missed(run):
    assert refusal(run.read_summary)[0] == f"{run.path} has no summary.json"
    run.write_json(run.summary, {"top1": 81.61})
    assert run.finished
    assert run.read_summary() == {"top1": 81.61}


def test_a_broken_file_is_said_in_words(run):
    run.write_text(run.summary, "{")
    message, hint = refusal(run.read_summary)
    assert message.startswith(f"{run.summary} is broken: Expecting property name")
    assert hint


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


class TestHold:
    def test_leaves_no_trace_of_a_run_that_came_to_nothing(self, tmp_path):
        with RunDir(tmp_path / "a" / "run").hold():
            assert (tmp_path / "a" / "run").is_dir()
        assert not any(tmp_path.iterdir())

    def test_leaves_what_was_written_and_no_lock(self, run):
        with run.hold():
            run.write_text(run.recipe, "")
        assert [path.name for path in run.path.iterdir()] == ["recipe.toml"]

    def test_a_folder_that_is_held_is_still_new(self, run):
        with run.hold():
            run.require_new()

    def test_what_a_killed_process_left_half_written_is_taken_away(self, run):
        run.write_text(run.best, "best")
        for folder in (run.path, run.checkpoints):
            (folder / ".anykd-student-12345678").mkdir()
            (folder / ".anykd-student-12345678" / "half").touch()
            (folder / ".mine").mkdir()
        with run.hold():
            assert not list(run.path.rglob(".anykd-*"))
        left = sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*"))
        assert left == [".mine", "checkpoint", "checkpoint/.mine", "checkpoint/best.safetensors"]

    def test_is_refused_in_words_where_no_folder_can_be(self, tmp_path):
        (tmp_path / "file").touch()
        message, _ = refusal(RunDir(tmp_path / "file" / "run").hold().__enter__)
        assert message == (
            f"{tmp_path / 'file' / 'run'} cannot be written: a part of this path is a file, "
            "no folder"
        )
