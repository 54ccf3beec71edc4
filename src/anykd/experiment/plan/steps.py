"""Training steps on a copy of a method: how long they take, and how much memory."""

import copy
import itertools
import statistics
import time

import torch

from anykd.engine import LossScale, Parallel, Stepper, autocast
from anykd.engine.optim import build_optimizer
from anykd.experiment.assemble import Parts
from anykd.methods import Method
from anykd.models import StoredTeacher
from anykd.types import Batch

from .memory import bytes_of, kept_for_backward, optimizer_bytes

__all__ = ["Steps"]

_PROBE = 8
"""Images of the first steps, from whose time follows how many the others may have."""
_BUDGET = 8.0
"""Seconds that the measured steps may take together."""


class Steps:
    """Training steps of a copy of a run's method; nothing of the run itself changes.

    Args:
        parts: The run.
        images: Some of its images; where a batch is larger, they are repeated.

    Attributes:
        batch_size: Images of the steps that were measured.
        measured: How many these were.
        memory_how: How the memory was found.
    """

    def __init__(self, parts: Parts, images: Batch) -> None:
        self.parts, self.device = parts, parts.device
        self.images = images.to(self.device, memory_format=parts.trainer.layout)
        # A step's parts follow one another: one is measured, and its memory is that of all.
        self.parts_a_step = parts.recipe.train.grad_accum
        self.full = max(1, parts.recipe.train.batch_size // self.parts_a_step)
        self.batch_size = self.full
        self.measured = 0
        self.before = _allocated(self.device)
        self.method = _copy(parts.method, parts)
        self.copied = _allocated(self.device) - self.before
        train = parts.recipe.train
        self.optimizer = build_optimizer(self.method, train)
        for group in self.optimizer.param_groups:
            group["lr"] = train.peak_lr
        self.stepper = Stepper(
            Parallel(self.method, self.method.student),
            self.method,
            self.optimizer,
            precision=lambda: autocast(self.device, parts.dtype),
            scale=LossScale.for_precision(train.precision),
            clip_grad=train.clip_grad,
        )
        self.kept: dict[int, int] = {}
        self.memory_how = ""

    def measure(self, steps: int) -> float:
        """Seconds of a step with the recipe's batch: the median, scaled where fewer fit.

        Args:
            steps: How many to measure, at most.
        """
        few, half = min(_PROBE, self.full), min(_PROBE // 2, self.full)
        with kept_for_backward(self.method) as kept:
            self._run(half, 1)  # memory is claimed and kernels are chosen
        self.kept = {half: kept.bytes}
        per_image = self._run(few, 1)[0] / few
        affordable = int(_BUDGET / (steps + 1) / per_image)
        self.batch_size = min(self.full, max(affordable, few))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with kept_for_backward(self.method) as kept:
            self._run(self.batch_size, 1)
        self.kept[self.batch_size] = kept.bytes
        affordable = int(_BUDGET / (per_image * self.batch_size))
        found = self._run(self.batch_size, max(1, min(steps, affordable)))
        self.measured = len(found)
        return statistics.median(found) * self.full / self.batch_size * self.parts_a_step

    def teacher_seconds(self) -> float:
        """Seconds that all teachers that run need for the recipe's batch."""
        batch = _repeated(self.images, self.batch_size)
        total = 0.0
        for teacher in self.parts.teachers:
            if isinstance(teacher, StoredTeacher):
                continue  # it does not run
            times = []
            for _ in range(2):
                begun = self._now()
                with autocast(self.device, self.parts.dtype):
                    teacher(batch.images)
                times.append(self._now() - begun)
            total += min(times)
        return total * self.full / self.batch_size * self.parts_a_step

    def memory_bytes(self) -> int:
        """Peak memory of a step of the recipe."""
        teachers = [teacher.model for teacher in self.parts.teachers]
        scale = self.full / self.batch_size
        held = optimizer_bytes(self.optimizer)
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) - self.copied
            self.memory_how = "peak of the allocator in a step"
            # Weights, gradients and states do not grow with the batch.
            return int(self.before + held + (peak - self.before - held) * scale)
        self.memory_how = (
            "weights, gradients and optimiser state, and what autograd keeps for the backward "
            "pass; buffers that come and go, and torch itself, are not counted"
        )
        average = [] if self.parts.trainer.ema is None else [self.parts.student]
        fixed = bytes_of([self.method, *teachers, *average]) + held
        return int(fixed + self._kept_bytes())

    def _kept_bytes(self) -> float:
        """What autograd keeps of the recipe's batch: a part that grows with it, and one that not.

        The second is large where a method holds a memory of all images.
        """
        (few, least), *others = sorted(self.kept.items())
        if not others:
            return least * self.full / few
        ((many, most),) = others
        return least + (most - least) / (many - few) * (self.full - few)

    def _run(self, batch_size: int, steps: int) -> list[float]:
        """Seconds of each step."""
        batch = _repeated(self.images, batch_size)
        self.method.train()
        marks = [self._now()]
        for number in range(steps):
            self.stepper.take(batch, key=(self.parts.recipe.seed, number))
            marks.append(self._now())
        return [after - before for before, after in itertools.pairwise(marks)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _copy(method: Method, parts: Parts) -> Method:
    """A method with a student of its own; the teachers, which nothing changes, are shared."""
    shared: dict[int, object] = {}
    for teacher in parts.teachers:
        shared[id(teacher)] = teacher
        shared |= {id(module): module for module in teacher.model.modules()}
    return copy.deepcopy(method, shared)


def _repeated(batch: Batch, count: int) -> Batch:
    """As many images as asked for, the same ones again where there are fewer."""
    return batch.rows(torch.arange(count, device=batch.images.device) % len(batch))


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
