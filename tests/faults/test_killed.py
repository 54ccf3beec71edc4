"""Runs that are ended from outside, and go on as if nothing had happened."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.experiment.results import without_times
from tests.experiment.runs import CNN, anykd, short, train_vit
from tests.faults.processes import (
    checkpoints,
    command,
    kill_and_resume,
    started,
    steps_done,
    student,
    trace,
    wait_for,
)

pytestmark = pytest.mark.end_to_end

DATA = "synthetic:4x40"
PER_EPOCH = 10
STEPS = 4 * PER_EPOCH


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def arguments(folder) -> list[object]:
    """40 steps with everything that has a state: an average, dropout, mixed images, two workers."""
    teacher = train_vit(folder / "teacher", data=DATA)
    sets = ("train.checkpoint_every=3", "train.log_every=1", "data.workers=2")
    sets += ("train.ema_decay=0.9", "student.options.drop_rate=0.1", "augment.mixup=0.2")
    return [
        *("distill", "--teacher", teacher, "--student", "resnet18", "--data", DATA),
        *("--method", "fbt+crd", *short(CNN, *sets, epochs=4)),
    ]


@pytest.fixture(scope="module")
def straight(arguments, folder) -> Path:
    done = anykd(*arguments, "--out", folder / "straight")
    assert done.code == 0, done.err
    return folder / "straight"


def assert_same(run: Path, straight: Path) -> None:
    assert trace(run) == trace(straight)
    assert student(run) == student(straight)
    mine, theirs = (json.loads((path / "summary.json").read_text()) for path in (run, straight))
    assert without_times(mine) == without_times(theirs)
    best = "checkpoint/best.safetensors"
    assert (run / best).read_bytes() == (straight / best).read_bytes()


class TestKilled:
    def test_again_and_again_ends_as_a_run_that_nobody_touched(self, arguments, straight, folder):
        run = folder / "killed"
        done = kill_and_resume(arguments, run, steps=STEPS, kills=3, seed=1, corrupt=0.5)
        assert_same(run, straight)
        assert done.starts == 4

    def test_before_its_first_checkpoint_begins_again_by_resume(self, arguments, straight, folder):
        run = folder / "early"
        late = [*arguments, "--set", "train.checkpoint_every=1000", "--out", run]
        with started(command(*late), folder / "early.log") as process:
            wait_for(lambda: steps_done(run), lambda: process.poll() is None, 120)
            process.kill()
            process.wait()
        assert (run / "recipe.toml").is_file()
        assert not checkpoints(run)
        done = anykd("distill", "--resume", "--out", run)
        assert done.code == 0, done.err
        assert student(run) == student(straight)


@pytest.mark.parametrize(
    ("number", "to_group"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)]
)
class TestSignal:
    def test_ends_with_a_checkpoint_and_one_line_and_goes_on(
        self, number, to_group, arguments, straight, folder
    ):
        name = f"{number.name}-{to_group}"
        run, log = folder / name, folder / f"{name}.log"
        wide = [*arguments, "--set", "train.checkpoint_every=1000", "--out", run]
        with started(command(*wide), log) as process:
            wait_for(lambda: steps_done(run) > 13, lambda: process.poll() is None, 120)
            # Ctrl-C, Slurm and systemd send it to the loader's workers too.
            (os.killpg if to_group else os.kill)(process.pid, number)
            assert process.wait(60) == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        said = log.read_text().splitlines()
        assert said[-1] == f"stopped by {number.name}; continue with --resume --out {run}"
        assert "Traceback" not in log.read_text()
        state = json.loads((checkpoints(run)[-1] / "state.json").read_text())["trainer"]
        at = state["epochs_done"] * PER_EPOCH + state["steps_done"]
        assert at == steps_done(run) > 13
        done = anykd("distill", "--resume", "--out", run)
        assert done.code == 0, done.err
        assert f"resumed at epoch {at // PER_EPOCH + 1}, step {at % PER_EPOCH + 1}" in done.err
        assert student(run) == student(straight)


def test_signal_before_training_leaves_nothing(folder):
    run, log = folder / "planned", folder / "planned.log"
    arguments = ["train", "--model", "resnet50", "--data", "synthetic:4x500", "--out", run]
    with started(command(*arguments), log) as process:
        wait_for(lambda: (run / ".anykd.lock").exists(), lambda: process.poll() is None, 120)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert log.read_text().splitlines()[-1] == (
        "stopped by SIGINT before training; nothing was written"
    )
    assert "Traceback" not in log.read_text()
    assert not run.exists()


class TestResume:
    def test_of_nothing_begins_the_run_where_it_is_told_what_to_run(self, arguments, folder):
        run = folder / "new"
        short_run = [*arguments, "--epochs", 1, "--out", run, "--resume"]
        assert anykd(*short_run).code == 0
        done = anykd(*short_run)
        assert done.code == 2
        assert f"{run} is finished, there is nothing to resume" in done.err

    def test_of_nothing_alone_is_refused(self, folder):
        done = anykd("distill", "--resume", "--out", folder / "nothing")
        assert done.code == 2
        assert "holds no run to resume" in done.err
        assert not (folder / "nothing").exists()


def test_folder_that_is_removed_meanwhile_is_told(arguments, folder):
    run, log = folder / "removed", folder / "removed.log"
    # Nothing but a checkpoint is written within an epoch.
    settings = ("train.log_every=1000", "train.diagnoses=0")
    quiet = [*arguments, *(part for one in settings for part in ("--set", one)), "--out", run]
    with started(command(*quiet), log) as process:
        wait_for(lambda: checkpoints(run), lambda: process.poll() is None, 120)
        run.rename(folder / "elsewhere")
        assert process.wait(60) == 2
    assert f"error: {run} was removed while it was written to" in log.read_text()
    assert not (run / "summary.json").exists()
