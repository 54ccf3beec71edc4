"""The arms: the floor's three parts, the step, the loop, and the step as published code runs it."""

import copy
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anykd.data import TrainLoader
from anykd.engine import Listener, Trainer
from anykd.engine.config import TrainConfig
from anykd.engine.optim import build_optimizer
from anykd.engine.precision import autocast
from anykd.experiment.assemble import Parts
from anykd.models import StagedModel
from anykd.models.views import Views
from anykd.rundir import RunDir
from anykd.types import Batch, Features

from .clock import synchronise

__all__ = ["Loop", "OurStep", "OwnModules", "PublishedStep", "Student", "Teacher", "random_batch"]

_Callable = TypeVar("_Callable", bound=Callable[..., Any])

_LONGEST = 40
"""Steps of the loop that are timed at once, at most."""


def random_batch(parts: Parts, count: int) -> Batch:
    """Images and labels as the loop hands them to a step: on the device, in the models' layout."""
    height, width = parts.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, height, width, generator=generator)
    labels = torch.randn(count, parts.student.num_classes, generator=generator).softmax(1)
    batch = Batch(images, labels, torch.arange(count))
    return batch.to(parts.device, memory_format=parts.trainer.layout)


class Teacher:
    """Part a: the teacher's own forward pass on images that are ready for it.

    Args:
        parts: Of the run.
        views: The images that both models see.
    """

    def __init__(self, parts: Parts, views: Views) -> None:
        (teacher,) = parts.teachers
        self.model = teacher.model.model
        self.images = _prepared(teacher.model, views)
        self.precision = partial(autocast, parts.device, parts.dtype)
        self.run = _compiled(self.model, parts.recipe.train)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Run it once."""
        with self.precision():
            self.run(self.images)


class Student:
    """Part b: the student's own forward pass, cross-entropy, backward pass and optimiser step.

    Args:
        parts: Of the run; the student is a copy.
        views: The images that both models see.
        labels: Of the images.
    """

    def __init__(self, parts: Parts, views: Views, labels: Float[Tensor, "batch classes"]) -> None:
        self.model = copy.deepcopy(parts.student.model).train()
        self.optimizer = build_optimizer(self.model, parts.recipe.train)
        self.images, self.labels = _prepared(parts.student, views), labels
        self.precision = partial(autocast, parts.device, parts.dtype)
        self.run = _compiled(self.model, parts.recipe.train)

    def __call__(self) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = F.cross_entropy(self.run(self.images).float(), self.labels)
        loss.backward()
        self.optimizer.step()


class OwnModules:
    """Part c: what the method computes of both models' features, forward, backward and its step.

    The features are computed before, and require gradients where the student's do. Parameters that
    the method holds beside the student's are stepped, since nothing trains them otherwise.

    Args:
        parts: Of the run.
        batch: What both models have seen.
    """

    def __init__(self, parts: Parts, batch: Batch) -> None:
        self.method, self.batch = parts.method, batch
        self.precision = partial(autocast, parts.device, parts.dtype)
        with torch.no_grad(), self.precision():
            self.student = parts.student(batch.images)
            self.teacher = parts.teachers[0](batch.images)
        self.leaves = [tensor for tensor in _tensors(self.student) if tensor.is_floating_point()]
        for tensor in self.leaves:
            tensor.requires_grad_()
        children = parts.method.named_children()
        self.own = nn.ModuleDict({name: part for name, part in children if name != "student"})
        trains = any(p.requires_grad for p in self.own.parameters())
        self.optimizer = build_optimizer(self.own, parts.recipe.train) if trains else None
        self.run = _compiled(parts.method.terms, parts.recipe.train)

    def __call__(self) -> None:
        """Compute the terms and their gradients."""
        self.method.zero_grad(set_to_none=True)
        for leaf in self.leaves:
            leaf.grad = None
        with self.precision():
            terms = self.run(self.batch, self.student, self.teacher)
            loss = torch.stack(list(terms.values())).sum() if terms else None
        if loss is not None:
            loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()


class OurStep:
    """The real step, as the trainer takes it.

    Args:
        parts: Of the run.
        batch: What it sees.
    """

    def __init__(self, parts: Parts, batch: Batch) -> None:
        self.stepper, self.batch, self.seed = parts.trainer.stepper, batch, parts.recipe.seed
        self.number = 0

    def __call__(self) -> None:
        """Take a step."""
        self.number += 1
        self.stepper.take(self.batch, key=(self.seed, 0, self.number))


class PublishedStep:
    """A step as published code takes it.

    float32, eager, NCHW, the models in turn, an optimiser that goes through the parameters one by
    one, and a loss that is read after each step. The loss is computed by the same method.

    Args:
        parts: Of a run in float32 that is neither compiled nor in channels-last layout.
        batch: What it sees.
    """

    def __init__(self, parts: Parts, batch: Batch) -> None:
        self.method, self.batch = parts.method.train(), batch
        config = parts.recipe.train
        self.optimizer = torch.optim.AdamW(
            parts.method.parameters(),
            lr=config.peak_lr,
            weight_decay=config.weight_decay,
            foreach=False,
            fused=False,
        )
        self.losses: list[float] = []

    def __call__(self) -> None:
        """Take a step."""
        output = self.method(self.batch)
        loss = output.loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())


class _Enough(Exception):  # noqa: N818  (it is no error)
    """Ends an epoch when all steps are timed."""


class TimedLoader:
    """A loader that counts the seconds that its reader waits.

    Args:
        loader: What is read.
    """

    def __init__(self, loader: TrainLoader) -> None:
        self.loader, self.steps_per_epoch = loader, loader.steps_per_epoch
        self.waited = 0.0

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        batches = self.loader.batches(epoch, skip=skip)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - begun
            yield batch

    def is_even(self, step: int) -> bool:
        """As the loader says."""
        return self.loader.is_even(step)

    def state_dict(self) -> dict[str, Any]:
        """As the loader says."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Pass it on."""
        self.loader.load_state_dict(state)


class Loop:
    """The real training loop with its data, metrics and average of weights.

    Each call trains an epoch of its own up to the last step that is timed. The steps before the
    first that is timed fill the queues of the loader's workers; they would have left the epoch
    before its end half empty, so that an epoch is longer than what is timed. Each time one line of
    metrics is written.

    Args:
        trainer: Of the run.
        directory: Where metrics go.
        steps: How many to time at once; the epoch's length may allow fewer.

    Attributes:
        timed: Steps that are timed.
        waits: The share of time that each call waited for data.
    """

    def __init__(self, trainer: Trainer, directory: RunDir, *, steps: int) -> None:
        self.trainer, self.directory = trainer, directory
        loader = trainer.loader
        assert isinstance(loader, TrainLoader)
        trainer.loader = self.loader = TimedLoader(loader)
        ahead = 2 * min(8, os.cpu_count() or 1)
        most = max(1, (loader.steps_per_epoch - ahead) * 2 // 3)
        self.timed = max(1, min(_LONGEST, most, steps))
        self.warm = max(1, self.timed // 2)
        # A line of metrics in each window, however short: more than a real run writes.
        trainer.config = trainer.config.model_copy(update={"log_every": self.timed})
        self.waits: list[float] = []
        self.begun = self.seconds = 0.0

    def __call__(self) -> float:
        """Train some steps.

        Returns:
            Seconds of a step.
        """
        self.trainer.epochs_done, self.trainer.steps_done = self.trainer.epochs_done + 1, 0
        listener = Listener(step=self._after, log=self.directory.log)
        try:
            self.trainer.fit(listener)
        except _Enough:
            return self.seconds
        raise AssertionError("the epoch has too few steps")

    def _after(self, epoch: int, step: int) -> None:
        if step + 1 == self.warm:
            synchronise(self.trainer.device)
            self.begun, self.loader.waited = time.perf_counter(), 0.0
        elif step + 1 == self.warm + self.timed:
            synchronise(self.trainer.device)
            whole = time.perf_counter() - self.begun
            self.seconds = whole / self.timed
            self.waits.append(self.loader.waited / whole)
            raise _Enough


def _prepared(staged: StagedModel, views: Views) -> Tensor:
    """What a model sees, once for models that see the same."""
    return views.of(staged.view, staged.mean, staged.std)


def _compiled(work: _Callable, config: TrainConfig) -> _Callable:
    """Compile a model or function as the run does it."""
    if not config.compile:
        return work
    mode = "reduce-overhead" if config.compile == "cuda_graphs" else None
    return torch.compile(work, mode=mode)  # pyright: ignore[reportReturnType]


def _tensors(features: Features) -> list[Tensor]:
    """All tensors of what a model saw."""
    values = [getattr(features, field.name) for field in fields(features)]
    flat = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
    return [one for one in flat if one is not None]
