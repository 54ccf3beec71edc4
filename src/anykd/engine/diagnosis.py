"""A close look at a step while it is taken: what each term weighs, and where the time goes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anykd.distributed import sum_over_ranks, world_size
from anykd.types import Batch, Terms

__all__ = ["Diagnosis", "Stopwatch", "Waiting", "Watch", "diagnosed_epochs", "gradient_norms"]


def diagnosed_epochs(epochs: int, times: int) -> frozenset[int]:
    """Choose epochs evenly, with the first and the last.

    Args:
        epochs: How many there are.
        times: How many to choose; all of them where there are no more. One is the last.

    Returns:
        Numbers of epochs, from 0.
    """
    if times < 2:
        return frozenset([epochs - 1] if times else [])
    return frozenset(round(number * (epochs - 1) / (times - 1)) for number in range(times))


class Stopwatch:
    """Adds up how long the device works on something that is done in several goes.

    Args:
        device: Waited for at both ends.

    Attributes:
        seconds: So far.
        goes: How often it was started.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds, self.goes = 0.0, 0

    def start(self) -> None:
        """Begin, or go on."""
        self._since = self._now()
        self.goes += 1

    def stop(self) -> None:
        """Stop until the next start."""
        self.seconds += self._now() - self._since

    @contextmanager
    def running(self) -> Iterator[None]:
        """Stands around what is timed."""
        self.start()
        yield
        self.stop()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class Waiting:
    """Passes batches on, and knows how long the loop has waited for them.

    On a GPU the host works ahead, and waits for the device where it reads results: what it waits
    for batches, the device soon waits for, too.

    Args:
        batches: Where they come from. The first is not counted: workers have to start.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._begun: float | None = None
        self._waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            asked = time.perf_counter()
            batch = next(self._batches, None)
            if batch is None:
                return
            now = time.perf_counter()
            if self._begun is None:
                self._begun = now
            else:
                self._waited += now - asked
            yield batch

    @property
    def share(self) -> float | None:
        """Part of the time since the first batch; None before the second."""
        if not self._waited or self._begun is None:
            return None
        return self._waited / (time.perf_counter() - self._begun)


Watch = Callable[[Stopwatch], AbstractContextManager[None]]
"""Stands around a step and lets the stopwatch run while something apart is done, such as while
teachers work."""


class Diagnosis:
    """What is seen of one step while it is taken, without changing anything of it.

    Args:
        parameters: Those that the gradients are of.
        device: Where the step is computed.
        watch: Times what is done apart in it.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, device: torch.device, watch: Watch
    ) -> None:
        self.parameters = parameters
        self._step, self._apart, self._own = (Stopwatch(device) for _ in range(3))
        self._watch = watch
        self._names: tuple[str, ...] = ()
        self._norms: Tensor | None = None

    @contextmanager
    def around(self) -> Iterator[None]:
        """Stands around the step."""
        with self._step.running(), self._watch(self._apart):
            yield

    def see(self, terms: Terms, share: float, scale: float) -> None:
        """Measure the gradients of a step's terms between its forward and its backward pass.

        Args:
            terms: Of this rank's images in the first part of the step; their graph is kept.
            share: This rank's part of the images of that part.
            scale: Factor on the loss, so that no gradient underflows.
        """
        with self._own.running():
            self._names = tuple(terms)
            self._norms = gradient_norms(
                list(terms.values()), self.parameters, share=share, scale=scale
            )

    def found(self) -> dict[str, Any]:
        """What was seen: the fields of a ``diagnosis`` line beside its position."""
        assert self._norms is not None
        norms = dict(zip(self._names, self._norms.tolist(), strict=True))
        total = sum(norms.values())
        seconds = self._step.seconds - self._own.seconds
        apart = self._apart.seconds / seconds if self._apart.goes else None
        return {
            "grad_norms": norms,
            "grad_shares": {name: norm / total if total else 0.0 for name, norm in norms.items()},
            "teacher_share": apart,
            "step_seconds": seconds,
        }


def gradient_norms(
    terms: Sequence[Float[Tensor, ""]],
    parameters: Sequence[nn.Parameter],
    *,
    share: float = 1.0,
    scale: float = 1.0,
) -> Float[Tensor, " terms"]:
    """The norm of each term's own gradient, over all ranks. A collective.

    Parameters' ``grad`` and all hooks on them are left alone, and the graph can be used again.

    Args:
        terms: Means over this rank's images.
        parameters: What the gradients are with respect to; one that a term does not reach counts
            as 0.
        share: This rank's part of all images.
        scale: Factor on the loss while gradients are computed; it does not show in the norms.
    """
    norms = []
    for term in terms:
        if not term.requires_grad:
            norms.append(torch.zeros((), device=term.device))
            continue
        gradients = torch.autograd.grad(
            term * scale, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        norms.append(_norm(gradients, share) / scale)
    return torch.stack(norms)


def _norm(gradients: Sequence[Tensor], share: float) -> Float[Tensor, ""]:
    if world_size() > 1:
        flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
        return torch.linalg.vector_norm(sum_over_ranks(flat * share))
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))).float())
