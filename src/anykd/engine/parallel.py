"""How the ranks share one module: who holds its weights, and how gradients become one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from anykd.distributed import sum_over_ranks, world_size
from anykd.errors import RecipeError, first_line
from anykd.models.sharding import shard
from anykd.types import Batch, StepOutput

__all__ = ["Compilation", "Parallel", "clip_gradients", "keep_apart", "local"]

Compilation = bool | Literal["partial", "cuda_graphs"]


class Parallel:
    """A module on all ranks, which see different images and take the same steps.

    Plain: each rank holds everything and DistributedDataParallel averages the gradients. Sharded:
    each rank holds a part of one of its models (FSDP2) and all of the rest. The running statistics
    of batch norms are averaged after each step, so that between steps all ranks are alike. In one
    process it is the module itself.

    Args:
        module: Maps a `Batch` to a `StepOutput`; on its device. Where it has a ``trains_logits``
            that is false, some of its parameters get no gradient.
        student: The part of it to be sharded.
        fsdp: Shard it, where there are several ranks. Its parameters are new ones afterwards: make
            the optimiser then.
        sync_bn: Let batch norms normalise by the images of all ranks.
        compile: Compile the module, as in `TrainConfig`.

    Attributes:
        module: As given; names in its state dict stay what they were.
        is_sharded: Whether the ranks hold different parts.

    Raises:
        RecipeError: If batch norms cannot be synchronised on this device, or nothing can be
            compiled here.
    """

    def __init__(
        self,
        module: nn.Module,
        student: nn.Module,
        *,
        fsdp: bool = False,
        sync_bn: bool = False,
        compile: Compilation = False,
    ) -> None:
        self.module = module
        device = next(module.parameters()).device
        if sync_bn:
            _require_gpu(
                device, "train.sync_bn", "leave it out, or take a model without batch norms"
            )
            module = convert_sync_batchnorm(module)
        if compile:
            _require_compiler(device)
            if compile == "cuda_graphs":
                _require_gpu(device, 'train.compile = "cuda_graphs"', "set train.compile = true")
            mode = "reduce-overhead" if compile == "cuda_graphs" else None
            module.compile(fullgraph=compile != "partial", mode=mode)
        self._compiled: Compilation = compile
        self.is_sharded = fsdp and world_size() > 1
        self._call: nn.Module = module
        if self.is_sharded:
            shard(student)
        elif world_size() > 1:
            # Looking for unused parameters costs time.
            unused = not getattr(module, "trains_logits", True)
            self._call = DistributedDataParallel(module, find_unused_parameters=unused)
        norms = [part for part in module.modules() if isinstance(part, _Norm)]
        self._norms = [norm for norm in norms if norm.running_mean is not None]

    def __call__(self, batch: Batch) -> StepOutput:
        """Run the module on this rank's images.

        Raises:
            RecipeError: If it is to be one program and cannot.
        """
        if not self._compiled:
            return self._call(batch)
        from torch._dynamo.exc import Unsupported  # takes seconds to import

        if self._compiled == "cuda_graphs":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._call(batch)
        except Unsupported as error:
            raise RecipeError(
                f"train.compile: these models and this method are not one program: "
                f"{first_line(error)}",
                hint='set train.compile = "partial", or leave it out',
            ) from error

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Stands around forward and backward pass of one part of a step.

        Args:
            last: Whether it is the step's last part: only then gradients go between the ranks.
        """
        if isinstance(self._call, DistributedDataParallel) and not last:
            with self._call.no_sync():
                yield
            return
        for part in self.module.modules() if self.is_sharded else ():
            if isinstance(part, FSDPModule):
                part.set_requires_gradient_sync(last, recurse=False)
        yield

    @torch.no_grad()
    def after_backward(self) -> None:
        """Average what no wrapper does, once a step and behind its last part.

        These are gradients of parameters that each rank holds beside a sharded model, and the
        running statistics of batch norms.
        """
        if world_size() == 1:
            return
        tensors = [t for n in self._norms for t in (n.running_mean, n.running_var) if t is not None]
        if self.is_sharded:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            tensors += [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        _average(tensors)


_Norm = nn.modules.batchnorm._BatchNorm


def _average(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over the ranks; each type takes one message."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(same, flat.split([t.numel() for t in same]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


@torch.no_grad()
def clip_gradients(
    gradients: Sequence[Tensor], largest: float | None
) -> tuple[Float[Tensor, ""], Float[Tensor, " parameters"]]:
    """Scale gradients down where the norm of all of them together is above a limit.

    All ranks call it together, and nothing waits for the device.

    Args:
        gradients: Plain, sharded, or both.
        largest: The limit; None leaves the gradients.

    Returns:
        The norm before, the same on every rank and not finite where any gradient is not; and the
        norm of each gradient, of a sharded one that of this rank's part.
    """
    if not gradients:
        return torch.zeros(()), torch.zeros(0)
    parts = [local(gradient) for gradient in gradients]
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(parts)])
    is_part = [isinstance(gradient, DTensor) for gradient in gradients]
    if any(is_part):
        squares, of_parts = norms.square(), norms.new_tensor(is_part)
        whole = sum_over_ranks((squares * of_parts).sum()) + (squares * (1 - of_parts)).sum()
        norm = whole.sqrt()
    else:
        norm = torch.linalg.vector_norm(norms)
    if largest is not None:
        torch._foreach_mul_(parts, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm, norms


def local(gradient: Tensor) -> Tensor:
    """This rank's share of a sharded gradient: functions on lists refuse it among others."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def keep_apart(optimizer: torch.optim.Optimizer) -> None:
    """Give sharded and plain parameters groups of their own: no operation takes both at once.

    Args:
        optimizer: New, without a state; it is changed.
    """
    for group in list(optimizer.param_groups):
        sharded = [p for p in group["params"] if isinstance(p, DTensor)]
        plain = [p for p in group["params"] if not isinstance(p, DTensor)]
        if sharded and plain:
            group["params"] = sharded
            optimizer.param_groups.append(group | {"params": plain})


def _require_gpu(device: torch.device, setting: str, hint: str) -> None:
    if device.type != "cuda":
        raise RecipeError(
            f"{setting} works on GPUs alone, and this run is on {device.type}", hint=hint
        )


def _require_compiler(device: torch.device) -> None:
    """Compile something small, so that what is missing shows before training."""
    try:
        torch.compile(_doubled)(torch.ones(8, device=device))
    except Exception as error:
        # A compiler, its headers or Triton is missing: each fails in its own way.
        raise RecipeError(
            f"train.compile: torch.compile does not work here: {first_line(error)}",
            hint="install a C++ compiler such as g++, or set train.compile = false",
        ) from error


def _doubled(x: Tensor) -> Tensor:
    return 2 * x
