"""Two processes that want the same run directory."""

from tests.experiment.runs import CNN, DATA, anykd, short
from tests.faults.processes import checkpoints, student, trace, typed, wait_for

TRAIN = ("train", "--model", "resnet18", "--data", DATA)


def test_a_run_in_progress_is_refused_and_goes_on_when_its_process_has_gone(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    flags = short(CNN, "train.log_every=1", "data.workers=2", epochs=8)
    with typed(*TRAIN, "-o", run, *flags) as child:
        wait_for(lambda: checkpoints(run), child.process.is_alive, 60)
        for command in ([*TRAIN, "-o", run, *flags], ["train", "-o", run, "--resume"]):
            done = anykd(*command)
            assert done.code == 2
            assert f"error: {run} is in use by process {child.process.pid} on " in done.err
            assert "--out DIR" in done.err
        assert child.process.is_alive()
    # The process was killed, and its workers may live on for a moment.
    done = anykd("train", "-o", run, "--resume")
    assert done.code == 0, done.err
    assert anykd(*TRAIN, "-o", other, *flags).code == 0
    assert trace(run) == trace(other)
    assert student(run) == student(other)


def test_a_finished_run_holds_no_lock_and_says_that_it_is_finished(tmp_path):
    run = tmp_path / "run"
    assert anykd(*TRAIN, "-o", run, *short(CNN)).code == 0
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
    done = anykd("train", "-o", run, "--resume")
    assert done.code == 2
    assert "is finished, there is nothing to resume" in done.err
