"""`anykd` as processes of its own: started, killed, resumed, and what they leave behind."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.experiment.runs import Outcome, anykd

TIMES = ("images_per_second", "seconds", "step_seconds", "teacher_share", "data_share")
"""What differs between two runs that are otherwise the same."""


# A process that is forked from one that has imported everything, and has computed nothing, starts
# in no time.
_FRESH = multiprocessing.get_context("forkserver")
_FRESH.set_forkserver_preload(["anykd.experiment.run", "tests.experiment.runs"])


@dataclass
class Typed:
    """A command in a process of its own."""

    process: Any
    reader: Any

    def outcome(self) -> Outcome:
        """Wait for its end."""
        assert self.reader.poll(120), "not within two minutes"
        return self.reader.recv()


@contextlib.contextmanager
def typed(
    *arguments: object, file_bytes: int | None = None, more_bytes: int | None = None
) -> Iterator[Typed]:
    """Type a command in a process of its own, which ends with the body.

    Args:
        arguments: Of `anykd`.
        file_bytes: The size that no file of it may exceed.
        more_bytes: The address space that it may take beyond what it has at its start.
    """
    reader, writer = _FRESH.Pipe(duplex=False)
    limits = (arguments, file_bytes, more_bytes)
    process = _FRESH.Process(target=_type, args=(writer, *limits))
    process.start()
    writer.close()
    try:
        yield Typed(process, reader)
    finally:
        process.kill()
        process.join()


def _type(
    writer: Any, arguments: tuple[object, ...], file_bytes: int | None, more_bytes: int | None
) -> None:
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if more_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    writer.send(anykd(*arguments))


def command(*arguments: object) -> list[str]:
    """An `anykd` command, as a process."""
    return [sys.executable, "-m", "anykd", *map(str, arguments)]


def torchrun(*options: str, arguments: list[object]) -> list[str]:
    """The same under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *options]
    return [*launcher, "-m", "anykd", *map(str, arguments)]


def ranks_of(agent: int) -> dict[int, int]:
    """The processes that a torchrun has started on its machine: process ids by local rank."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[1] == str(agent):
                environment = (status.parent / "environ").read_bytes().split(b"\0")
                values = dict(line.split(b"=", 1) for line in environment if b"=" in line)
                found[int(values[b"LOCAL_RANK"])] = int(status.parent.name)
    return found


@contextlib.contextmanager
def started(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process whose words go to a file; it ends with the body, if not before."""
    with log.open("ab") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its ranks then, which have sessions of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition: Callable[[], Any], lives: Callable[[], bool], seconds: float) -> Any:
    """Wait until something holds, or a process has ended.

    Returns:
        What the condition gave last.
    """
    end = time.monotonic() + seconds
    while not (found := condition()) and lives():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.005)
    return found


def trace(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def student(run: Path) -> bytes:
    """The student's weights, to the bit."""
    return (run / "student" / "model.safetensors").read_bytes()


def steps_done(run: Path) -> int:
    """Steps in the metrics of a run that logs every one."""
    return _lines(run, "step")


def epochs_done(run: Path) -> int:
    """Epochs in the metrics of a run that is scored at each."""
    return _lines(run, "epoch")


def _lines(run: Path, event: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (run / "metrics.jsonl").read_text().count(f'"event": "{event}"')
    return 0


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, the oldest first."""
    return sorted((run / "checkpoint").glob("step-*"))


@dataclass
class Kills:
    """What a run went through.

    Attributes:
        starts: Processes that were started.
        at_steps: Steps that the metrics told of at each kill.
        while_starting: How many of the killed processes had not begun to train.
        corrupted: Newest checkpoints that were damaged while nobody ran.
    """

    starts: int = 0
    at_steps: list[int] = field(default_factory=list)
    while_starting: int = 0
    corrupted: list[str] = field(default_factory=list)


def kill_and_resume(
    arguments: list[object],
    run: Path,
    *,
    steps: int,
    kills: int,
    seed: int,
    while_starting: float = 0.0,
    corrupt: float = 0.0,
) -> Kills:
    """Run to the end a command that is killed again and again, at random steps and moments.

    Args:
        arguments: Of `anykd`, with ``train.log_every=1`` and checkpoints within an epoch.
        run: Where it writes; what it says goes to a file beside it.
        steps: Optimiser steps of the whole run.
        kills: How often it is killed while it trains, spread over the run.
        seed: Of the moments.
        while_starting: Chance, behind each kill, that the next process is killed as it starts.
        corrupt: Chance, behind each kill, that a byte of the newest checkpoint is changed.

    Returns:
        Counts of what was done to it.
    """
    chance, done = random.Random(seed), Kills()
    for at in sorted(chance.choices(range(1, steps), k=kills)):
        if checkpoints(run) and chance.random() < while_starting:
            with _life(arguments, run, done) as process:
                time.sleep(chance.uniform(0, 6))
                _kill(process, run, done)
                done.while_starting += 1
        with _life(arguments, run, done) as process:
            before = _changed(run)
            # What the metrics say counts once this process has begun to write them.
            wait_for(
                lambda before=before, at=at: _changed(run) != before and steps_done(run) >= at,
                lambda process=process: process.poll() is None,
                300,
            )
            time.sleep(chance.uniform(0, 0.2))  # also into a checkpoint, or an evaluation
            _kill(process, run, done)
        if (run / "summary.json").is_file():
            return done
        if chance.random() < corrupt and len(checkpoints(run)) > 1:
            done.corrupted.append(_corrupt(checkpoints(run)[-1], chance))
    with _life(arguments, run, done) as process:
        process.wait(600)
    return done


@contextlib.contextmanager
def _life(arguments: list[object], run: Path, done: Kills) -> Iterator[subprocess.Popen[bytes]]:
    """Start the run, or let it go on where it has a checkpoint; it ends well or is killed."""
    log = run.with_name(f"{run.name}.log")
    resume = ["--resume"] if checkpoints(run) else []
    done.starts += 1
    with started(command(*arguments, "--out", run, *resume), log) as process:
        yield process
        assert process.poll() in (None, 0, -signal.SIGKILL), log.read_text()


def _changed(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.stat().st_mtime_ns if metrics.is_file() else 0


def _kill(process: subprocess.Popen[bytes], run: Path, done: Kills) -> None:
    """End a process without a word to it; its children find out by themselves."""
    if process.poll() is None:
        process.kill()
        process.wait()
        done.at_steps.append(steps_done(run))


def _corrupt(checkpoint: Path, chance: random.Random) -> str:
    """Change one byte of one file, and say of which."""
    file = chance.choice(sorted(path for path in checkpoint.iterdir() if path.stat().st_size))
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 0xFF
    file.write_bytes(content)
    return f"{checkpoint.name}/{file.name}"


@dataclass(frozen=True)
class Footprint:
    """What a process takes: megabytes in memory, open files and threads."""

    megabytes: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        """Measure a process that lives, its children apart."""
        proc = Path("/proc") / str(pid)
        pages = int((proc / "statm").read_text().split()[1])
        count = {name: len(list((proc / name).iterdir())) for name in ("fd", "task")}
        return cls(pages * resource.getpagesize() / 2**20, count["fd"], count["task"])

    @classmethod
    def least(cls, footprints: list["Footprint"]) -> "Footprint":
        """The least of each: files are open for a moment, and memory comes and goes."""
        return cls(
            min(each.megabytes for each in footprints),
            min(each.files for each in footprints),
            min(each.threads for each in footprints),
        )
