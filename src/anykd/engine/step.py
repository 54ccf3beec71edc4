"""One optimiser step: the parts of its batch, a look whether all is finite, and the move."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anykd.distributed import from_each_rank, rank, sum_over_ranks, unequal, world_size
from anykd.types import Batch, StepOutput, Terms

from .parallel import Parallel, clip_gradients, local
from .randomness import seed_everything
from .scaling import LossScale

__all__ = ["BadStep", "Outcome", "Step", "Stepper"]

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
    """A step that was taken. All tensors are still on the device, and may not be computed yet.

    Attributes:
        values: This rank's part of the loss and its terms, by ``names``; they add up over ranks.
        names: ``loss`` and the terms.
        moved: 1 where the parameters moved, 0 where the step was skipped.
        report: Over all ranks: whether a value was not finite, whether a gradient was not, whether
            anyone asked to stop, and the norm of the gradient before it was clipped.
        norms: Norm of each parameter's gradient, of those that have one.
        indices: This rank's images; None where nobody numbered them.
        share: This rank's part of all images of the step.
        scale: Factor on the loss.
    """

    values: Float[Tensor, " terms"]
    names: tuple[str, ...]
    moved: Float[Tensor, ""]
    report: Float[Tensor, " 4"]
    norms: Float[Tensor, " parameters"]
    indices: Int[Tensor, " batch"] | None
    share: float
    scale: float

    @property
    def grad_norm(self) -> float:
        """Norm of the whole gradient, before it was clipped; waits for the step."""
        return float(self.report[-1])

    def total(self) -> dict[str, float]:
        """The loss and its terms over the images of all ranks. A collective; waits for the step."""
        return dict(zip(self.names, sum_over_ranks(self.values).tolist(), strict=True))


@dataclass(frozen=True)
class Outcome:
    """What came of a step.

    Attributes:
        bad: What was not finite; the step was skipped. None where all was well.
        overflowed: Whether the step was skipped because the loss scale was too large.
        stop: Whether a rank asked to stop.
    """

    bad: BadStep | None
    overflowed: bool
    stop: bool


class Stepper:
    """Takes the optimiser steps of a module.

    A step whose loss or gradient is not finite leaves everything as it was: parameters, the
    optimiser's state, and the buffers that the forward pass changed in place. Whether it was is
    decided on the device, so that nothing waits for it: the processor prepares steps while the
    device is still busy with those before. Only optimisers that know no ``found_inf`` have to be
    told by the host whether to move.

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
        buffers = [b for name, b in module.named_buffers() if name not in large and b.numel()]
        dtypes = dict.fromkeys(buffer.dtype for buffer in buffers)
        self._buffers = [[b for b in buffers if b.dtype == dtype] for dtype in dtypes]
        self._parameters = list(module.named_parameters())
        self._skips_on_device = bool(getattr(optimizer, "_step_supports_amp_scaling", False))

    def take(
        self,
        batch: Batch,
        *,
        key: tuple[int, ...],
        even: bool = True,
        stop: Callable[[], bool] = lambda: False,
        see: Callable[[Terms, float, float], None] | None = None,
    ) -> Step:
        """Run the parts of a batch forward and backward, and move the parameters.

        Args:
            batch: This rank's images.
            key: Decides what the module draws at random, with the part and the rank.
            even: Whether all ranks have equally many images.
            stop: Asked whether to stop after this step; all ranks hear of it.
            see: Called between forward and backward pass of the first part, with its terms, this
                rank's part of its images, and the factor on the loss.
        """
        before = [_joined(buffers) for buffers in self._buffers]
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
                if see is not None and number == 0:
                    see(output.terms, len(part) / sum(sizes[0]), self.scale.value)
                share = len(part) / sum(counts)
                # Ranks average their gradients, so each multiplies by their number first.
                (loss * (share * world_size() * self.scale.value)).backward()
            found = torch.stack([loss, *output.terms.values()]).detach().float() * share
            names = ("loss", *output.terms)
            values = found if values is None else values + found
        self.parallel.after_backward()
        assert values is not None
        norm, norms = self._clipped(values)
        flags = torch.stack([values.isfinite().all(), norm.isfinite()]).logical_not()
        flags = sum_over_ranks(torch.cat([flags.to(values), values.new_full((1,), float(stop()))]))
        bad = flags[0] + flags[1] > 0
        self._move(bad, before)
        report = torch.cat([flags, norm[None]])
        share = len(batch) / sum(counts)
        moved = bad.logical_not().to(values)
        return Step(values, names, moved, report, norms, batch.indices, share, self.scale.value)

    def _clipped(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Undo the loss scale and clip; the norm of all gradients, and that of each."""
        gradients = [p.grad for _, p in self._parameters if p.grad is not None]
        if self.scale.enabled:
            torch._foreach_mul_([local(gradient) for gradient in gradients], 1 / self.scale.value)
        norm, norms = clip_gradients(gradients, self.clip_grad)
        return norm.to(values), norms

    @torch.no_grad()
    def _move(self, bad: Tensor, before: list[Tensor]) -> None:
        """Move the parameters, or where something is not finite put everything back."""
        if self._skips_on_device:
            # Read by torch's fused optimisers, which then change nothing; as their GradScaler does.
            self.optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        elif not bad:  # waits for the device
            self.optimizer.step()
        for buffers, old in zip(self._buffers, before, strict=True):
            kept = torch.where(bad, old, _joined(buffers)).split([b.numel() for b in buffers])
            shapes = [part.view(b.shape) for part, b in zip(kept, buffers, strict=True)]
            torch._foreach_copy_(buffers, shapes)

    def outcome(self, step: Step, report: Sequence[float]) -> Outcome:
        """Learn on the host what came of a step, and adapt the loss scale to it.

        All ranks ask for the same steps in their order.

        Args:
            step: One that was taken.
            report: The numbers of its report.
        """
        bad_values, bad_norm, asked, _ = report
        bad, overflowed = None, False
        if not bad_values and not bad_norm:
            self.scale.succeeded()
        else:
            overflowed = not bad_values and self.scale.overflowed(step.scale)
            bad = None if overflowed else self._describe(step)
        return Outcome(bad, overflowed, asked > 0)

    def _describe(self, step: Step) -> BadStep:
        """Say what was not finite in a step. A collective; waits for the step."""
        mine = step.values / step.share
        terms = from_each_rank(dict(zip(step.names, mine.tolist(), strict=True)))
        names = [name for name, parameter in self._parameters if parameter.grad is not None]
        finite = step.norms.isfinite().tolist()
        broken = [name for name, fine in zip(names, finite, strict=True) if not fine]
        indices = from_each_rank(None if step.indices is None else step.indices.tolist())
        known = [index for share in indices if share is not None for index in share]
        return BadStep(terms, broken[:_SHOWN], known or None)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _joined(buffers: list[Tensor]) -> Tensor:
    """All of them in one vector: a model may have hundreds, each a kernel of its own to copy."""
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
