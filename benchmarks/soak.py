"""A run that is killed and damaged again and again, and one of hundreds of epochs.

    python -m benchmarks.soak            # both; writes docs/results/soak.json and its page
    python -m benchmarks.soak --page     # the page anew, from the results

The run that is killed is `anykd distill` as a process, on two workers, with checkpoints within an
epoch. It is killed at random steps and moments, also while it starts; now and then a byte of its
newest checkpoint is changed before it goes on. It is compared, bit for bit, with the same command
left alone. The long run is watched from outside, through /proc.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from anykd.environment import describe_environment
from tests.experiment.runs import CNN, VIT, short
from tests.faults.processes import (
    Footprint,
    command,
    epochs_done,
    kill_and_resume,
    started,
    steps_done,
    student,
    trace,
    wait_for,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "soak.json"
PAGE = RESULTS.with_suffix(".md")
DATA = "synthetic:8x32"
EPOCHS, STEPS = 8, 8 * 16
SETS = ("data.workers=2", "train.log_every=1", "train.checkpoint_every=5", "train.ema_decay=0.99")


def finish(arguments: list[object], run: Path) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: If it fails, with what it said.
    """
    log = run.with_name(f"{run.name}.log")
    with started(command(*arguments, "--out", run), log) as process:
        if process.wait():
            raise RuntimeError(log.read_text())


def soak_kills(folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Compare a run that is killed with one that is not."""
    vit = ("--model", "vit_tiny_patch16_224", "--data", DATA)
    finish(["train", *vit, *short(VIT)], folder / "teacher")
    arguments: list[object] = [
        *("distill", "--teacher", folder / "teacher", "--student", "resnet18", "--data", DATA),
        *("--method", "fbt+crd", *short(CNN, *SETS, epochs=EPOCHS)),
    ]
    alone, killed = folder / "alone", folder / "killed"
    finish(arguments, alone)
    began = time.perf_counter()
    done = kill_and_resume(
        arguments, killed, steps=STEPS, kills=kills, seed=seed, while_starting=0.2, corrupt=0.2
    )
    said = killed.with_name("killed.log").read_text()
    return {
        "command": " ".join(command(*arguments)[1:]).replace(str(folder), "runs"),
        "seed": seed,
        "steps": steps_done(alone),
        "seconds": round(time.perf_counter() - began),
        **asdict(done),
        "passed_over": said.count("the one before it is used"),
        "lines": len(trace(alone)),
        "same_trace": trace(killed) == trace(alone),
        "same_student": student(killed) == student(alone),
    }


def soak_epochs(folder: Path, *, epochs: int) -> dict[str, Any]:
    """Watch what a long run takes."""
    run, rows = folder / "long", []
    flags = short(CNN, "data.workers=2", "train.log_every=1", epochs=epochs)
    arguments = ["train", "--model", "resnet18", "--data", "synthetic:4x8", *flags, "--out", run]
    began = time.perf_counter()
    with started(command(*arguments), folder / "long.log") as process:
        for tenth in range(1, 10):
            some = []
            for epoch in range(max(1, epochs * tenth // 10 - 5), epochs * tenth // 10):
                wait_for(
                    lambda epoch=epoch: epochs_done(run) >= epoch,
                    lambda: process.poll() is None,
                    3600,
                )
                some.append(Footprint.of(process.pid))
            rows.append({"epoch": epochs * tenth // 10} | asdict(Footprint.least(some)))
        if process.wait():
            raise RuntimeError((folder / "long.log").read_text())
    return {"epochs": epochs, "seconds": round(time.perf_counter() - began), "rows": rows}


def render(found: dict[str, Any]) -> str:
    """Write the page."""
    killed, long = found["killed"], found["long"]
    same = {True: "the same, bit for bit", False: "**not the same**"}
    lines = [
        "# A run that is killed, and a long one",
        "",
        "Written by `make soak` (benchmarks/soak.py) from [soak.json](soak.json). What is promised",
        "in general, and how tests hold it: [reliability](../concepts/reliability.md).",
        "",
        "## Killed again and again",
        "",
        f"`{killed['command']}`",
        "",
        "| what was done to it, and found | |",
        "|---|---|",
        f"| steps of the run | {killed['steps']} |",
        f"| kills (SIGKILL) | {len(killed['at_steps'])} |",
        f"| of these, before training had begun again | {killed['while_starting']} |",
        f"| newest checkpoints damaged while nobody ran | {len(killed['corrupted'])} |",
        f"| times that a damaged one was named, and the one before it used | "
        f"{killed['passed_over']} |",
        f"| processes started | {killed['starts']} |",
        f"| metrics, {killed['lines']} lines without times, against the run left alone | "
        f"{same[killed['same_trace']]} |",
        f"| the student's weights, against those of the run left alone | "
        f"{same[killed['same_student']]} |",
        "",
        f"Steps in the metrics at the kills: {', '.join(map(str, killed['at_steps']))}.",
        "",
        "## Left running",
        "",
        f"{long['epochs']} epochs of a tiny run on two workers, each with an evaluation and a",
        "checkpoint. The least of five looks at the main process:",
        "",
        "| epoch | MB resident | open files | threads |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['epoch']} | {row['megabytes']:.1f} | {row['files']} | {row['threads']} |"
        for row in long["rows"]
    ]
    made = found["made"]
    versions = ", ".join(f"{name} {made['packages'][name]}" for name in ("torch", "timm"))
    lines += [
        "",
        f"Seed {killed['seed']}, n = 1, commit {made['commit']}, {made['device']}, Python "
        f"{made['python']}, {versions}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Soak, and write down what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", action="store_true", help="write the page anew, run nothing")
    asked = parser.parse_args()
    if not asked.page:
        with tempfile.TemporaryDirectory(prefix="anykd-soak-") as folder:
            found = {
                "made": describe_environment(torch.device("cpu")),
                "killed": soak_kills(Path(folder), kills=asked.kills, seed=asked.seed),
                "long": soak_epochs(Path(folder), epochs=asked.epochs),
            }
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(RESULTS.read_text())
    PAGE.write_text(render(found))
    print(PAGE.read_text())
    return 0 if found["killed"]["same_trace"] and found["killed"]["same_student"] else 1


if __name__ == "__main__":
    sys.exit(main())
