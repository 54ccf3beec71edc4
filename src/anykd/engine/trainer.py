"""The loop: it trains any module that turns a `Batch` into a `StepOutput`."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from timm.utils import ModelEmaV3, distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anykd.distributed import rank, world_size
from anykd.errors import DataError, RecipeError
from anykd.types import Batch, StepOutput

from .config import TrainConfig
from .optim import build_ema, build_optimizer, learning_rate
from .precision import autocast, choose_dtype

__all__ = ["Listener", "TrainLoader", "Trainer", "train_epoch"]


@runtime_checkable
class TrainLoader(Protocol):
    """Where batches come from: any object with these two."""

    steps_per_epoch: int

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch, counted from 0."""
        ...


@dataclass
class Listener:
    """What to do as training goes on; each does nothing unless given.

    Attributes:
        step: Called with (epoch, step) after every optimiser step.
        log: Called with the values of every logged step.
        epoch: Called with the trainer after every epoch, that is with ``epochs_done`` counted up.
    """

    step: Callable[[int, int], None] = field(default=lambda epoch, step: None)
    log: Callable[[dict[str, Any]], None] = field(default=lambda values: None)
    epoch: Callable[["Trainer"], None] = field(default=lambda trainer: None)


def train_epoch(
    module: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    set_lr: Callable[[int], float],
    precision: Callable[[], Any],
    after_step: Callable[[int, float, StepOutput], None],
    clip_grad: float | None = None,
) -> None:
    """Take one optimiser step per batch.

    Args:
        module: The method, possibly inside DistributedDataParallel.
        batches: This rank's share of the epoch, already on the device.
        optimizer: Holds every trainable parameter of ``module``.
        set_lr: Writes the learning rate of the coming step and returns it.
        precision: Gives the context of the forward pass.
        after_step: Called with the step, its learning rate and what the method returned.
        clip_grad: Largest norm of the whole gradient; None leaves it.
    """
    module.train()
    for step, batch in enumerate(batches):
        lr = set_lr(step)
        with precision():
            output: StepOutput = module(batch)
            loss = output.loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_grad is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip_grad)
        optimizer.step()
        after_step(step, lr, output)


class Trainer:
    """A module in training, with all that changes while it trains.

    Args:
        module: Maps a `Batch` to a `StepOutput`; on its device. Where it has a ``trains_logits``
            that is false, some of its parameters get no gradient.
        averaged: The part of it that an average of weights follows.
        loader: Where batches come from.
        config: The ``[train]`` table.
        device: Where to compute.
        seed: Of dropout and stochastic depth.

    Attributes:
        epochs_done: Epochs trained so far.
        ema: The average of the weights, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        averaged: nn.Module,
        loader: TrainLoader,
        config: TrainConfig,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        self.config, self.loader, self.device, self.seed = config, loader, device, seed
        self.module, self.averaged = module, averaged
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        module.to(device).to(memory_format=self.layout)
        self.dtype = choose_dtype(config.precision, device)
        self.optimizer = build_optimizer(module, config)
        self.ema: ModelEmaV3 | None = build_ema(averaged, config)
        self.parallel = _parallel(module) if world_size() > 1 else module
        self.epochs_done = 0

    def fit(self, listener: Listener) -> None:
        """Train until the last epoch."""
        while self.epochs_done < self.config.epochs:
            self._train_epoch(listener)
            self._agree_on_batch_statistics()
            self.epochs_done += 1
            listener.epoch(self)

    def _agree_on_batch_statistics(self) -> None:
        """Average the running statistics of batch norms, which each rank has of its own share."""
        if world_size() > 1:
            distribute_bn(self.module, world_size(), reduce=True)
            if self.ema is not None:
                distribute_bn(self.ema.module, world_size(), reduce=True)

    def _train_epoch(self, listener: Listener) -> None:
        epoch, steps = self.epochs_done, self.loader.steps_per_epoch
        torch.manual_seed(_mixed(self.seed, epoch, rank()))
        clock = time.perf_counter()

        def set_lr(step: int) -> float:
            within = step / steps if self.config.lr_update == "step" else 0.0
            lr = learning_rate(self.config, epoch + within)
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            return lr

        def after_step(step: int, lr: float, output: StepOutput) -> None:
            nonlocal clock
            if self.ema is not None:
                self.ema.update(self.averaged, step=epoch * steps + step + 1)
            listener.step(epoch, step)
            if step % self.config.log_every and step != steps - 1:
                return
            now = time.perf_counter()
            logged = 1 if step == 0 else (step - 1) % self.config.log_every + 1
            values = _values(output)
            listener.log(
                {"event": "step", "epoch": epoch, "step": step, "lr": lr}
                | values
                | {"images_per_second": round(self.config.batch_size * logged / (now - clock), 1)}
            )
            _require_finite(values, epoch, step)
            clock = now

        batches = self.loader.batches(epoch)
        with _batch_norm_needs_two():
            train_epoch(
                self.parallel,
                (batch.to(self.device, memory_format=self.layout) for batch in batches),
                self.optimizer,
                set_lr=set_lr,
                precision=lambda: autocast(self.device, self.dtype),
                after_step=after_step,
                clip_grad=self.config.clip_grad,
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training, to go on from later."""
        return {
            "epochs_done": self.epochs_done,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.epochs_done = state["epochs_done"]
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


@contextmanager
def _batch_norm_needs_two() -> Iterator[None]:
    """Say in words what torch says of one image whose map has shrunk to one position."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise RecipeError(
            "a batch norm needs more than one value for each channel, and one image has one",
            hint="raise train.batch_size, or train at a larger image_size",
        ) from error


def _parallel(module: nn.Module) -> DistributedDataParallel:
    """Let the ranks average their gradients; looking for unused parameters costs time."""
    unused = not getattr(module, "trains_logits", True)
    return DistributedDataParallel(module, find_unused_parameters=unused)


def _values(output: StepOutput) -> dict[str, float]:
    """The terms and their sum as numbers. This waits for the device."""
    with torch.no_grad():
        stacked = torch.stack([output.loss, *output.terms.values()]).tolist()
    return dict(zip(["loss", *output.terms], stacked, strict=True))


def _require_finite(values: dict[str, float], epoch: int, step: int) -> None:
    """Stop where a term is no number any more: nothing that follows would mean anything."""
    broken = [name for name, value in values.items() if not abs(value) < float("inf")]
    if broken:
        raise DataError(
            f"{', '.join(broken)} became {values[broken[0]]} in epoch {epoch}, step {step}",
            hint="lower train.peak_lr, set train.clip_grad = 5, or train.precision = 'float32'",
        )


def _mixed(*numbers: int) -> int:
    """One seed from several numbers, none of which it resembles."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed
