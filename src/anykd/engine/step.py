"""One optimiser step: the parts of its batch, a look whether all is finite, and the move."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from anykd.distributed import from_each_rank, rank, sum_over_ranks, unequal, world_size
from anykd.types import Batch, StepOutput

from .parallel import Parallel, clip_gradients
from .randomness import seed_everything
from .scaling import LossScale

__all__ = ["BadStep", "Step", "Stepper"]

_SHOWN = 5
"""Parameters with broken gradients that are named."""


@dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient was not finite.

    Attributes:
        terms: The loss and its terms on each rank, by name.
        parameters: The first parameters whose gradients were not finite.
        indices: The images of the step, over all ranks; None where nobody numbered them.
    """

    terms: list[dict[str, float]]
    parameters: list[str]
    indices: list[int] | None

    @property
    def named(self) -> str:
        """What was not finite: the terms, or else the parameters whose gradients were not."""
        broken = {
            name: value
            for terms in self.terms
            for name, value in terms.items()
            if name != "loss" and not _finite(value)
        }
        if broken:
            return " and ".join(f"the term {name} was {value}" for name, value in broken.items())
        return f"the gradient of {', '.join(self.parameters) or 'the loss'} was not finite"


@dataclass(frozen=True)
class Step:
    """What a step came to.

    Attributes:
        values: This rank's part of the loss and its terms, by ``names``; they add up over ranks.
        names: ``loss`` and the terms.
        grad_norm: Norm of the whole gradient, before it was clipped.
        bad: What was not finite; the step was skipped. None where all was well.
        overflowed: Whether the step was skipped because the loss scale was too large.
        stop: Whether a rank asked to stop.
    """

    values: Float[Tensor, " terms"]
    names: tuple[str, ...]
    grad_norm: float
    bad: BadStep | None
    overflowed: bool
    stop: bool

    def total(self) -> dict[str, float]:
        """The loss and its terms over the images of all ranks. A collective."""
        return dict(zip(self.names, sum_over_ranks(self.values).tolist(), strict=True))


class Stepper:
    """Takes the optimiser steps of a module.

    A step whose loss or gradient is not finite leaves everything as it was: parameters, the
    optimiser's state, and the buffers that the forward pass changed.

    Args:
        parallel: The module, as the ranks share it.
        module: The module itself.
        optimizer: Holds every trainable parameter of it.
        precision: Gives the context of a forward pass.
        scale: The loss scale.
        grad_accum: Parts that a batch is run in.
        clip_grad: Largest norm of the whole gradient; None leaves it.
    """

    def __init__(
        self,
        parallel: Parallel,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: Callable[[], AbstractContextManager[Any]],
        scale: LossScale,
        grad_accum: int = 1,
        clip_grad: float | None = None,
    ) -> None:
        self.parallel, self.module, self.optimizer = parallel, module, optimizer
        self.precision, self.scale = precision, scale
        self.grad_accum, self.clip_grad = grad_accum, clip_grad
        # Memories of every image are too large to copy in each step: who keeps one takes in what
        # is finite alone.
        large = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
        self._buffers = [b for name, b in module.named_buffers() if name not in large]
        self._before = [torch.empty_like(buffer) for buffer in self._buffers]

    def take(
        self,
        batch: Batch,
        *,
        key: tuple[int, ...],
        even: bool = True,
        stop: Callable[[], bool] = lambda: False,
    ) -> Step:
        """Run the parts of a batch forward and backward, and move the parameters.

        Args:
            batch: This rank's images.
            key: Decides what the module draws at random, with the part and the rank.
            even: Whether all ranks have equally many images.
            stop: Asked whether to stop after this step; all ranks hear of it.
        """
        _copy(self._buffers, self._before)
        self.optimizer.zero_grad(set_to_none=True)
        counts = [len(batch)] * world_size() if even else from_each_rank(len(batch))
        parts = min(self.grad_accum, *counts)
        sizes = [[count // parts + (i < count % parts) for count in counts] for i in range(parts)]
        values: Tensor | None = None
        names: tuple[str, ...] = ()
        for number, part in enumerate(batch.split(parts)):
            seed_everything(*key, number, rank())
            last = number == parts - 1
            shares = None if even else sizes[number]
            with self.parallel.part(last=last), unequal(shares):
                with self.precision():
                    output: StepOutput = self.parallel(part)
                    loss = output.loss
                share = len(part) / sum(counts)
                # Ranks average their gradients, so each multiplies by their number first.
                (loss * (share * world_size() * self.scale.value)).backward()
            found = torch.stack([loss, *output.terms.values()]).detach().float() * share
            names = ("loss", *output.terms)
            values = found if values is None else values + found
        self.parallel.after_backward()
        assert values is not None
        return self._move(batch, values, names, stop)

    def _move(
        self, batch: Batch, values: Tensor, names: tuple[str, ...], stop: Callable[[], bool]
    ) -> Step:
        if self.scale.enabled:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_([_local(gradient) for gradient in gradients], 1 / self.scale.value)
        norm = clip_gradients(self.module.parameters(), self.clip_grad).to(values)
        broken = torch.stack([~values.isfinite().all(), ~norm.isfinite()])
        flags = torch.cat([broken.to(values), values.new_tensor([float(stop())])])
        # The one place of a step that waits for the device.
        bad_values, bad_norm, asked, grad_norm = torch.cat(
            [sum_over_ranks(flags), norm[None]]
        ).tolist()
        bad, overflowed = None, False
        if bad_values or bad_norm:
            overflowed = not bad_values and self.scale.overflowed()
            if not overflowed:
                bad = self._describe(batch, values, names)
            _copy(self._before, self._buffers)
        else:
            self.optimizer.step()
            self.scale.succeeded()
        return Step(values, names, grad_norm, bad, overflowed, asked > 0)

    def _describe(self, batch: Batch, values: Tensor, names: tuple[str, ...]) -> BadStep:
        mine = values * sum(from_each_rank(len(batch))) / len(batch)
        terms = from_each_rank(dict(zip(names, mine.tolist(), strict=True)))
        parameters = [
            name
            for name, parameter in self.module.named_parameters()
            if parameter.grad is not None and not _local(parameter.grad).isfinite().all()
        ]
        indices = from_each_rank(None if batch.indices is None else batch.indices.tolist())
        known = [index for share in indices if share is not None for index in share]
        return BadStep(terms, parameters[:_SHOWN], known or None)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:  # the functions on lists refuse empty ones
        torch._foreach_copy_(target, source)


def _local(gradient: Tensor) -> Tensor:
    """This rank's share of a sharded gradient: functions on lists refuse it among others."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
