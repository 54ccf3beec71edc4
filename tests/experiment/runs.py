"""The command line in this process, and runs that take a second."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from safetensors.torch import load_file
from torch import Tensor

from anykd.cli import main

VIT = "student.options={patch_size=8,embed_dim=32,depth=4,num_heads=2}"
CNN = "student.options={layers=[1,1,1,1],channels=[8,16,24,32]}"
DATA = "synthetic:4x16"


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it wrote."""

    code: int | str | None
    out: str
    err: str


def anykd(*arguments: object) -> Outcome:
    """Type a command."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["anykd", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
    return Outcome(code, out.getvalue(), err.getvalue())


def newest_checkpoint(run: Path) -> Path:
    """The folder of a run's newest checkpoint."""
    return sorted((run / "checkpoint").glob("step-*"))[-1]


def saved_tensors(run: Path) -> dict[str, Tensor]:
    """Tensors in the newest checkpoint of a run of one process, or of ranks that are all alike."""
    found: dict[str, Tensor] = {}
    for shard in newest_checkpoint(run).glob("*.safetensors"):
        found |= load_file(shard)
    return found


def short(*sets: str, epochs: int = 1) -> list[str]:
    """Flags of a run that takes half a second, with values to ``--set``."""
    flags = f"--epochs {epochs} --batch-size 16 --image-size 32".split()
    return flags + [
        part for value in ("train.precision=float32", *sets) for part in ("--set", value)
    ]


def train_vit(out: Path, *, data: str = DATA, epochs: int = 1) -> Path:
    """Train a tiny ViT: a good teacher of the synthetic images after one epoch."""
    name = "vit_tiny_patch16_224"
    done = anykd("train", "--model", name, "--data", data, "-o", out, *short(VIT, epochs=epochs))
    assert done.code == 0, done.err
    return out


def distill_cnn(
    out: Path, teacher: Path, *sets: str, method: str = "kd", data: str = DATA, epochs: int = 1
) -> Path:
    """Distil a tiny ResNet."""
    done = anykd(
        *("distill", "--teacher", teacher, "--student", "resnet18", "--data", data),
        *("--method", method, "--out", out, *short(CNN, *sets, epochs=epochs)),
    )
    assert done.code == 0, done.err
    return out
