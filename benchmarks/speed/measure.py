"""One method of one pair, measured."""

import gc
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anykd.environment import describe_environment
from anykd.experiment import build_cache
from anykd.experiment.assemble import Parts, assemble
from anykd.models.views import Views
from anykd.recipe import Recipe
from anykd.rundir import RunDir

from .arms import Loop, OurStep, OwnModules, PublishedStep, Student, Teacher, random_batch
from .clock import (
    Measurement,
    Work,
    count_flops,
    interleave,
    matmul_flops,
    repeated,
    resident,
    rise,
)
from .pairs import Pair, Setting, recipe_of, write_images, write_teacher

__all__ = ["CACHE", "Bench", "on_device"]

CACHE = "kd from cache"
"""Measured like a method: the loops of KD from a cache and of control, on the same images."""


class Bench:
    """A pair whose images and teacher lie ready.

    Args:
        pair: Who teaches whom.
        setting: How.
        folder: For images, weights, caches and metrics.
    """

    def __init__(self, pair: Pair, setting: Setting, folder: Path) -> None:
        self.pair, self.setting, self.folder = pair, setting, folder
        self.weights = folder / "teacher.safetensors"
        write_teacher(pair, self.weights)
        self.source = write_images(pair, setting.batch, folder / "images")

    @classmethod
    @contextmanager
    def temporary(cls, pair: Pair, setting: Setting) -> Iterator["Bench"]:
        """Make one that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="anykd-speed-") as folder:
            yield cls(pair, setting, Path(folder))

    def recipe(self, method: str, **options: Any) -> Recipe:
        """A recipe of this pair."""
        setting = options.pop("setting", self.setting)
        return recipe_of(
            self.pair, method, setting, weights=self.weights, source=self.source, **options
        )

    def measure(self, method: str, rounds: int) -> dict[str, Any]:
        """Measure a method, or `CACHE`.

        Returns:
            Plain values: see `benchmarks.speed.results`.
        """
        found = self._cache(rounds) if method == CACHE else self._method(method, rounds)
        gc.collect()  # worker processes and graphs of what was measured
        setting = self.setting
        return {
            "method": method,
            "precision": setting.precision,
            "compile": setting.compile,
            "batch": setting.batch,
            "image_size": self.pair.image_size,
            "rounds": rounds,
            "environment": describe_environment(setting.device),
            **found,
        }

    def _method(self, method: str, rounds: int) -> dict[str, Any]:
        device, taught = self.setting.device, method != "control"
        parts = assemble(self.recipe(method), device)
        parts.method.train()
        batch = random_batch(parts, self.setting.batch)
        assert batch.labels is not None
        views = Views(batch.images)
        step, student = OurStep(parts, batch), Student(parts, views, batch.labels)
        works: dict[str, Work] = {"student": student, "step": step}
        floor: list[object] = [student.model, student.optimizer, student.images, batch.labels]
        if taught:
            teacher, own = Teacher(parts, views), OwnModules(parts, batch)
            works |= {"teacher": teacher, "modules": own}
            floor += [teacher.model, teacher.images, own.own, own.optimizer]
        plain = replace(self.setting, precision="float32", compile=False)
        eager = assemble(
            self.recipe(method, setting=plain, channels_last=False, ema_decay=None), device
        )
        published = PublishedStep(eager, random_batch(eager, self.setting.batch))
        arms = {
            name: self._timing(work) for name, work in (works | {"published": published}).items()
        }
        loop = self._loop(parts, method, arms["step"]())
        seconds = interleave(arms | {"loop": loop}, rounds)
        return {
            "seconds": seconds,
            "waits": loop.waits[1:],
            "loop_steps": loop.timed,
            "memory": self._memory(works, floor, [step, batch], [parts.method, student.model]),
            "flops": {name: count_flops(work) for name, work in works.items()},
            "matmul_flops": matmul_flops(device),
        }

    def _memory(
        self,
        works: dict[str, Work],
        floor: Sequence[object],
        ours: Sequence[object],
        models: Sequence[nn.Module],
    ) -> dict[str, Any]:
        """Bytes that are always held, and those that each arm adds; gradients are of the latter."""
        rises = {}
        for name, work in works.items():
            for model in models:
                model.zero_grad(set_to_none=True)
            rises[name] = rise(work, self.setting.device)
        for model in models:
            model.zero_grad(set_to_none=True)
        return {"floor_held": resident(*floor), "held": resident(*ours), "rises": rises}

    def _cache(self, rounds: int) -> dict[str, Any]:
        """KD from stored outputs against control, both on the cache's images and views."""
        device = self.setting.device
        cache = self.folder / "cache"
        if not cache.exists():
            build_cache(self.recipe("kd", cached_views=True), cache)
        control, kd = (
            assemble(self.recipe(method, cache=stored, cached_views=True), device)
            for method, stored in (("control", None), ("kd", cache))
        )
        step = OurStep(control, random_batch(control, self.setting.batch))
        seconds = self._timing(step)()
        loops = {
            name: self._loop(parts, f"{name} of {CACHE}", seconds)
            for name, parts in (("control", control), ("cached", kd))
        }
        return {"seconds": interleave(loops, rounds), "loop_steps": loops["control"].timed}

    def _timing(self, work: Work) -> Measurement:
        """How to time some work that is not a loop."""
        return repeated(work, self.setting.device, enough=self.setting.window / 6)

    def _loop(self, parts: Parts, name: str, step_seconds: float) -> Loop:
        """The loop of a run, which has trained already."""
        folder = self.folder / "metrics" / name
        folder.mkdir(parents=True, exist_ok=True)
        steps = math.ceil(self.setting.window / step_seconds)
        loop = Loop(parts.trainer, RunDir(folder), steps=steps)
        loop()
        return loop


def on_device(device: torch.device) -> str:
    """What the file of a device's results is called: processors are one kind."""
    if device.type != "cuda":
        return device.type
    words = torch.cuda.get_device_name(device).lower().split()
    return "-".join(words)
