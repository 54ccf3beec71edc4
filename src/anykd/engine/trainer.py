"""The loop: it trains any module that turns a `Batch` into a `StepOutput`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from anykd.distributed import world_size
from anykd.errors import CheckpointError, RecipeError
from anykd.models.sharding import filled, outline, shard
from anykd.types import Batch

from .checkpoint import Checkpoint
from .config import TrainConfig
from .diagnosis import Diagnosis, Watch, diagnosed_epochs
from .in_flight import StepsInFlight
from .memory import out_of_memory_in_words
from .optim import Average, build_optimizer, learning_rate
from .optimizer_state import pack_optimizer, unpack_optimizer
from .parallel import Parallel, keep_apart
from .precision import autocast, choose_dtype
from .readings import steps_behind
from .scaling import LossScale
from .step import Step, Stepper

__all__ = ["Listener", "TrainLoader", "Trainer"]


@runtime_checkable
class TrainLoader(Protocol):
    """Where batches come from: any object with these."""

    steps_per_epoch: int

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch, counted from 0, without the first ``skip``."""
        ...

    def is_even(self, step: int) -> bool:
        """Whether all ranks have equally many images in a step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values that go into checkpoints."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        ...


@dataclass
class Listener:
    """What to do as training goes on; each does nothing unless given.

    Attributes:
        step: Called with (epoch, step) after every optimiser step.
        log: Called with the values of every logged step.
        warn: Called with a line that a person should see.
        checkpoint: Called with the trainer every ``checkpoint_every`` steps within an epoch, and
            before it stops because it was asked to.
        score: Called with the trainer when the steps of an epoch are done.
        epoch: Called with the trainer after that, that is with ``epochs_done`` counted up.
        stop: Asked after every step whether to stop there.
        stopped: Called instead of going on; it raises.
        watch: Stands around each step that is diagnosed, and times what is done apart in it.
    """

    step: Callable[[int, int], None] = field(default=lambda epoch, step: None)
    log: Callable[[dict[str, Any]], None] = field(default=lambda values: None)
    warn: Callable[[str], None] = field(default=lambda line: None)
    checkpoint: Callable[["Trainer"], None] = field(default=lambda trainer: None)
    score: Callable[["Trainer"], None] = field(default=lambda trainer: None)
    epoch: Callable[["Trainer"], None] = field(default=lambda trainer: None)
    stop: Callable[[], bool] = field(default=lambda: False)
    stopped: Callable[[], None] = field(default=lambda: None)
    watch: Watch = field(default=lambda stopwatch: nullcontext())


class Trainer:
    """A module in training, with all that changes while it trains.

    Args:
        module: Maps a `Batch` to a `StepOutput`; on its device. Where it has a ``trains_logits``
            that is false, some of its parameters get no gradient.
        averaged: The part of it that an average of weights follows.
        loader: Where batches come from.
        config: The ``[train]`` table.
        device: Where to compute.
        seed: Of all that the module draws at random.

    Attributes:
        epochs_done: Epochs trained so far.
        steps_done: Optimiser steps of the present epoch.
        in_flight: The last steps, and the count of those that were skipped.
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
        # Convolutions alone: DDP is slow with other weights whose gradients have another layout.
        nn.utils.convert_conv2d_weight_memory_format(module.to(device), self.layout)
        self.dtype = choose_dtype(config.precision, device)
        self.ema = None if config.ema_decay is None else Average(averaged, config)
        # What is sharded can be neither copied nor saved as it is.
        shards = config.fsdp and world_size() > 1
        self._outline = outline(averaged) if shards else None
        self.parallel = Parallel(
            module, averaged, fsdp=config.fsdp, sync_bn=config.sync_bn, compile=config.compile
        )
        if shards and self.ema is not None:
            shard(self.ema.module)
        self.optimizer = build_optimizer(module, config)
        keep_apart(self.optimizer)
        self.scale = LossScale.for_precision(config.precision)
        self.stepper = Stepper(
            self.parallel,
            module,
            self.optimizer,
            precision=partial(autocast, device, self.dtype),
            scale=self.scale,
            grad_accum=config.grad_accum,
            clip_grad=config.clip_grad,
        )
        self.epochs_done, self.steps_done = 0, 0
        self.in_flight = StepsInFlight(
            self.stepper, behind=steps_behind(device), max_bad_steps=config.max_bad_steps
        )
        can_look = not (config.compile or shards)
        self._diagnosed = diagnosed_epochs(config.epochs, config.diagnoses if can_look else 0)

    def kept(self) -> nn.Module:
        """What is to be saved: ``averaged``, or its average, whole on each rank. A collective."""
        kept = self.averaged if self.ema is None else self.ema.module
        return kept if self._outline is None else filled(self._outline, kept)

    @property
    def bad_steps(self) -> int:
        """Steps that were skipped because the loss or a gradient was not finite."""
        return self.in_flight.bad_steps

    @property
    def all_steps_done(self) -> int:
        """Optimiser steps since the beginning, skipped ones included."""
        return self.epochs_done * self.loader.steps_per_epoch + self.steps_done

    def fit(self, listener: Listener) -> None:
        """Train until the last epoch, from wherever it stands.

        Raises:
            BadStepsError: If ``max_bad_steps`` steps in a row had to be skipped.
            RecipeError: If the memory of the device does not suffice, or a batch norm has a single
                value to normalise.
        """
        while self.epochs_done < self.config.epochs:
            if self.steps_done < self.loader.steps_per_epoch:
                with _batch_norm_needs_two(), out_of_memory_in_words(self.config, world_size()):
                    self._train_epoch(listener)
            listener.score(self)
            self.epochs_done, self.steps_done = self.epochs_done + 1, 0
            listener.epoch(self)

    def _train_epoch(self, listener: Listener) -> None:
        epoch, steps, every = self.epochs_done, self.loader.steps_per_epoch, self.config.log_every
        self.module.train()
        clock, since = time.perf_counter(), 0
        first = self.steps_done
        for step, batch in enumerate(self.loader.batches(epoch, skip=first), start=first):
            lr = self._set_lr(epoch, step)
            batch = batch.to(self.device, memory_format=self.layout)
            diagnosis = self._diagnosis(epoch, step, listener.watch)
            with nullcontext() if diagnosis is None else diagnosis.around():
                taken = self.stepper.take(
                    batch,
                    key=(self.seed, epoch, step),
                    even=self.loader.is_even(step),
                    stop=listener.stop,
                    see=None if diagnosis is None else diagnosis.see,
                )
            self.steps_done, since = step + 1, since + 1
            if self.ema is not None:
                self.ema.update(self.averaged, step=self.all_steps_done, moved=taken.moved)
            self.in_flight.add(epoch, step, taken)
            stops = self.in_flight.look_back(listener.warn, at_all=False)
            listener.step(epoch, step)
            if diagnosis is not None:
                listener.log({"event": "diagnosis", "epoch": epoch, "step": step} | diagnosis.found())
            if step % every == 0 or step == steps - 1:
                stops |= self.in_flight.look_back(listener.warn, at_all=True)
                now = time.perf_counter()
                speed = self.config.batch_size * since / (now - clock)
                listener.log(
                    {"event": "step", "epoch": epoch, "step": step, "lr": lr}
                    | taken.total()
                    | self._about(taken)
                    | {"images_per_second": round(speed, 1)}
                )
                clock, since = now, 0
            if stops:
                self.in_flight.look_back(listener.warn, at_all=True)
                listener.checkpoint(self)
                listener.stopped()
            elif self._is_due(step):
                self.in_flight.look_back(listener.warn, at_all=True)
                listener.checkpoint(self)
        assert self.steps_done == steps, "the loader gave fewer batches than it promised"

    def _diagnosis(self, epoch: int, step: int, watch: Watch) -> Diagnosis | None:
        """A look at the step in the middle of some epochs."""
        if epoch not in self._diagnosed or step != self.loader.steps_per_epoch // 2:
            return None
        parameters = [p for p in self.averaged.parameters() if p.requires_grad]
        return Diagnosis(parameters, device=self.device, watch=watch)

    def _is_due(self, step: int) -> bool:
        every = self.config.checkpoint_every
        last = step == self.loader.steps_per_epoch - 1  # the epoch's own checkpoint follows
        return every is not None and not last and self.all_steps_done % every == 0

    def _set_lr(self, epoch: int, step: int) -> float:
        by_step = self.config.lr_update == "step"
        lr = learning_rate(
            self.config, epoch + (step / self.loader.steps_per_epoch if by_step else 0.0)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def _about(self, taken: Step) -> dict[str, float]:
        """What to log of a step beside its terms."""
        scale = {"loss_scale": self.scale.value} if self.scale.enabled else {}
        return {"grad_norm": taken.grad_norm, "bad_steps": self.bad_steps} | scale

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that changes while training: the tensors, and plain values."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        if self.ema is not None:
            averages = self.ema.module.state_dict()
            tensors |= {f"ema.{name}": value for name, value in averages.items()}
        plain = {
            "epochs_done": self.epochs_done,
            "steps_done": self.steps_done,
            "steps_per_epoch": self.loader.steps_per_epoch,
            "bad_steps": self.bad_steps,
            "bad_in_a_row": self.in_flight.bad_in_a_row,
            "loss_scale": [self.scale.value, self.scale.good_steps],
            "loader": self.loader.state_dict(),
            "optimizer": pack_optimizer(self.optimizer, self.module, tensors),
        }
        return tensors, plain

    def load(self, checkpoint: Checkpoint, plain: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            checkpoint: Holds the tensors of `state`.
            plain: Its plain values.

        Raises:
            CheckpointError: If it is of another model, or within an epoch of other steps.
        """
        steps = self.loader.steps_per_epoch
        if plain["steps_done"] and plain["steps_per_epoch"] != steps:
            raise CheckpointError(
                f"{checkpoint.path} is at step {plain['steps_done']} of "
                f"{plain['steps_per_epoch']}, and an epoch has {steps} now",
                hint="batch size and images can change between epochs alone",
            )
        tensors, _ = self.state()
        tensors = {n: t for n, t in tensors.items() if not n.startswith("optimizer.")}
        saved = checkpoint.shapes()
        _require_same(checkpoint, tensors, saved)
        restore = unpack_optimizer(self.optimizer, self.module, plain["optimizer"], saved, tensors)
        checkpoint.read_into(tensors)
        restore()
        self.epochs_done, self.steps_done = plain["epochs_done"], plain["steps_done"]
        self.in_flight.bad_steps = plain["bad_steps"]
        self.in_flight.bad_in_a_row = plain["bad_in_a_row"]
        self.scale.value, self.scale.good_steps = plain["loss_scale"]
        self.loader.load_state_dict(plain["loader"])


def _require_same(
    checkpoint: Checkpoint,
    tensors: dict[str, Tensor],
    saved: dict[str, tuple[tuple[int, ...], torch.dtype]],
) -> None:
    """Refuse a checkpoint whose parameters are not those of the module at hand."""
    mine = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    theirs = {
        name: shape for name, (shape, _) in saved.items() if not name.startswith("optimizer.")
    }
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise CheckpointError(
                f"{checkpoint.path} is of another model: {name} is {theirs.get(name, 'not there')} "
                f"in it, and {mine.get(name, 'not there')} here",
                hint="resume it by --resume --out alone, or start a new run elsewhere",
            )


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
            hint="raise train.batch_size, lower train.grad_accum, set data.drop_last = true, or "
            "train at a larger image_size",
        ) from error
