"""Several machines under torchrun, and a process among several that is killed.

A machine is a network namespace here, with an address of its own and a cable to the other one.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.experiment.runs import DATA, VIT, anykd, short
from tests.faults.processes import (
    checkpoints,
    ranks_of,
    started,
    steps_done,
    student,
    torchrun,
    trace,
    wait_for,
)

SETS = (VIT, "train.log_every=1", "train.checkpoint_every=3", "data.workers=1")
TRAIN = ("train", "--model", "vit_tiny_patch16_224", "--data", DATA, *short(*SETS, epochs=5))

pytestmark = pytest.mark.distributed


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network of two machines can be made here: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def machines() -> Iterator[dict[str, list[str]]]:
    """Two machines: how a command is started on each, by its address."""
    names = {f"10.77.0.{number}": f"anykd-{os.getpid()}-{number}" for number in (1, 2)}
    first, second = names.values()
    try:
        for name in (first, second):
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "cable", "netns", second)
        for address, name in names.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        interface = ["env", "GLOO_SOCKET_IFNAME=cable"]
        yield {a: ["ip", "netns", "exec", name, *interface] for a, name in names.items()}
    finally:
        for name in (first, second):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def kill(agent: subprocess.Popen[bytes], local_rank: int, run: Path, *, at: int) -> None:
    """Kill a rank once the run has come to a step."""
    wait_for(lambda: steps_done(run) >= at, lambda: agent.poll() is None, 120)
    assert checkpoints(run)
    os.kill(ranks_of(agent.pid)[local_rank], signal.SIGKILL)


def finish(agent: subprocess.Popen[bytes], log: Path) -> None:
    assert agent.wait(180) == 0, log.read_text()


@pytest.fixture(scope="module")
def on_two_machines(machines, tmp_path_factory) -> Path:
    """A run on two machines; the process on the second one is killed on the way."""
    run = tmp_path_factory.mktemp("machines") / "run"
    first = next(iter(machines))
    with ExitStack() as stack:
        agents = []
        for number, (address, on_it) in enumerate(machines.items()):
            options = (
                *("--nnodes", "2", "--nproc-per-node", "1", "--local-addr", address),
                *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:29400"),
                *("--rdzv-id", "test", "--rdzv-conf", f"is_host={int(address == first)}"),
                *("--max-restarts", "1"),
            )
            agent = [*on_it, *torchrun(*options, arguments=[*TRAIN, "--out", run])]
            log = run.with_name(f"{number}.log")
            agents.append((stack.enter_context(started(agent, log)), log))
        kill(agents[1][0], 0, run, at=7)
        for agent, log in agents:
            finish(agent, log)
    return run


def test_two_machines_train_as_one_process_does(on_two_machines, tmp_path):
    assert anykd(*TRAIN, "--out", tmp_path / "run").code == 0
    # What single looks at steps see has tests of its own.
    found, expected = (
        [line for line in trace(run) if line["event"] != "diagnosis"]
        for run in (on_two_machines, tmp_path / "run")
    )
    assert len(found) == len(expected) == 5 * 5
    for line, other in zip(found, expected, strict=True):
        assert line.pop("event") == other.pop("event")
        assert line == pytest.approx(other, rel=1e-3)


def test_a_killed_rank_is_replaced_and_nothing_is_lost(on_two_machines, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    options = ("--nproc-per-node", "2", "--max-restarts", "1")
    with started(torchrun(*options, arguments=[*TRAIN, "--out", run]), log) as agent:
        kill(agent, 0, run, at=13)
        finish(agent, log)
    # Another rank of the other run was killed, at another step.
    assert trace(run) == trace(on_two_machines)
    assert student(run) == student(on_two_machines)


def test_a_signal_to_every_process_ends_with_one_checkpoint(tmp_path):
    """As schedulers send it: torchrun passes it on, so each rank has it twice."""
    run, log = tmp_path / "run", tmp_path / "log"
    sets = ("--set", "train.checkpoint_every=1000", "--epochs", "40")
    arguments = torchrun("--nproc-per-node", "2", arguments=[*TRAIN, *sets, "--out", run])
    with started(arguments, log) as agent:
        wait_for(lambda: steps_done(run) > 12, lambda: agent.poll() is None, 120)
        for process in (*ranks_of(agent.pid).values(), agent.pid):
            os.kill(process, signal.SIGTERM)
        agent.wait(60)
    said = f"stopped by SIGTERM; continue with --resume --out {run}"
    assert log.read_text().count(said) == 1
    (newest,) = [path for path in checkpoints(run) if int(path.name[5:]) == steps_done(run)]
    assert int(newest.name[5:]) > 12


def test_a_refusal_stays_one_behind_a_restart(on_two_machines, tmp_path):
    log = tmp_path / "log"
    options = ("--nproc-per-node", "1", "--max-restarts", "1")
    with started(torchrun(*options, arguments=[*TRAIN, "--out", on_two_machines]), log) as agent:
        assert agent.wait(120) != 0
    assert log.read_text().count(f"error: {on_two_machines} holds a finished run") == 2
