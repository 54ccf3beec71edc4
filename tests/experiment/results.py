"""What runs leave behind, and runs that are taken away before their end."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from anykd.data import Reader
from anykd.experiment.running import Running


class InterruptionError(Exception):
    """The process is taken away."""


def summary(path: Path) -> dict[str, Any]:
    return json.loads((path / "summary.json").read_text())


def weights(path: Path) -> dict[str, Tensor]:
    """The student that a run keeps."""
    return load_file(path / "student" / "model.safetensors")


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run, without how long they took."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    times = ("images_per_second", "step_seconds", "teacher_share", "data_share")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def assert_same_run(actual: Path, expected: Path) -> None:
    torch.testing.assert_close(weights(actual), weights(expected), rtol=0, atol=0)
    assert metrics(actual) == metrics(expected)
    assert without_times(summary(actual)) == without_times(summary(expected))


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without what depends on how long something took."""
    about_times = ("teacher-takes-the-time", "waits-for-data")
    signs = [sign for sign in summary["working"] if sign["code"] not in about_times]
    return summary | {"seconds": 0, "working": signs}


def classes_by_timm(path: Path, reader: Reader) -> Tensor:
    """The class that a run's student chooses for each image, as somebody without anykd has it."""
    model = timm.create_model(f"local-dir:{path / 'student'}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config(model=model), is_training=False)
    images = torch.stack([transform(reader[i].image) for i in range(len(reader))])
    with torch.no_grad():
        return model(images).argmax(dim=1)


def interrupt(monkeypatch: pytest.MonkeyPatch, *, epoch: int, step: int) -> None:
    """Let runs end with `InterruptionError` once a step is logged, until ``monkeypatch.undo``."""
    log = Running._log

    def log_until(self: Running, values: dict[str, Any]) -> None:
        log(self, values)
        if values["event"] == "step" and (values["epoch"], values["step"]) == (epoch, step):
            raise InterruptionError

    monkeypatch.setattr(Running, "_log", log_until)
