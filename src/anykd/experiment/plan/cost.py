"""What a run will cost: measured on this device by a few real steps, of which nothing stays."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from anykd.data.seeded import seeded
from anykd.data.workers import choose_workers
from anykd.experiment.assemble import Parts, train_loader, train_views
from anykd.types import Batch

from .steps import Steps

__all__ = ["Cost", "measure_cost"]

_LOADED = 64
"""Images that are really loaded; larger batches repeat them."""
_LOADING_BUDGET = 3.0
"""Seconds that loading may take."""


@dataclass(frozen=True)
class Cost:
    """What training takes, evaluation not counted.

    Attributes:
        device: What it was measured on.
        batch_size: Images of a step.
        measured_batch_size: Images of the steps that were measured: fewer where a step is slow;
            time and memory are then scaled up in proportion.
        measured_steps: How many were measured, after one to warm up.
        seconds_per_step: Median.
        images_per_second: What follows from that.
        teacher_share: Share of a step that the teachers' forward passes take, 0 to 1.
        loading_images_per_second: What the loader's processes can make ready: one was measured.
        workers: These processes; 0 is the training process itself.
        seconds_per_epoch: Of the slower of training and loading; of both where there are no
            workers.
        seconds: Of the whole run.
        memory_bytes: Peak, teachers included.
        memory_how: How that was found.
    """

    device: str
    batch_size: int
    measured_batch_size: int
    measured_steps: int
    seconds_per_step: float
    images_per_second: float
    teacher_share: float
    loading_images_per_second: float
    workers: int
    seconds_per_epoch: float
    seconds: float
    memory_bytes: int
    memory_how: str


def measure_cost(parts: Parts, *, steps: int = 5) -> Cost:
    """Measure loading and training, on copies.

    Weights, statistics, memories, optimiser and the generators of random numbers are afterwards
    as they were.

    Args:
        parts: The run.
        steps: Optimiser steps to measure, at most.
    """
    with _generators_kept(parts.device):
        images, seconds_per_image = _load(parts)
        step = Steps(parts, images)
        seconds = step.measure(steps)
        teacher = step.teacher_seconds()
    config = parts.recipe.train
    workers = choose_workers(parts.recipe.data.workers, parts.data.train)
    loading = config.batch_size * seconds_per_image / max(workers, 1)
    per_step = max(seconds, loading) if workers else seconds + loading
    per_epoch = per_step * parts.trainer.loader.steps_per_epoch
    return Cost(
        device=_device_name(parts.device),
        batch_size=config.batch_size,
        measured_batch_size=step.batch_size,
        measured_steps=step.measured,
        seconds_per_step=seconds,
        images_per_second=config.batch_size / seconds,
        teacher_share=min(teacher / seconds, 1.0),
        loading_images_per_second=max(workers, 1) / seconds_per_image,
        workers=workers,
        seconds_per_epoch=per_epoch,
        seconds=per_epoch * config.epochs,
        memory_bytes=step.memory_bytes(),
        memory_how=step.memory_how,
    )


def _load(parts: Parts) -> tuple[Batch, float]:
    """Some real images in one batch, and the seconds that one of them took in this process."""
    recipe = parts.recipe
    size = min(recipe.train.batch_size, _LOADED // 4)
    recipe = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"batch_size": size}),
            "data": recipe.data.model_copy(update={"workers": 0}),
        }
    )
    found: list[Batch] = []
    begun, spent = time.perf_counter(), 0.0
    views = train_views(recipe, parts.data, parts.image_size)
    for batch in train_loader(recipe, views, parts.stored, device=parts.device).batches(0):
        found.append(batch)
        spent = time.perf_counter() - begun
        if len(found) * size >= _LOADED or spent > _LOADING_BUDGET:
            break
    return Batch.joined(found), spent / (len(found) * size)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{platform.machine()} CPU, {count} thread{'s' * (count > 1)}"


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Leave all generators of random numbers as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), seeded(0):
        yield
