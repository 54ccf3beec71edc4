"""The optimiser, its learning rate, and the average of the weights."""

import inspect
import math
from typing import Any

import torch
from jaxtyping import Float
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from anykd.errors import RecipeError, nearest

from .config import TrainConfig
from .parallel import local

__all__ = ["Average", "build_optimizer", "learning_rate"]


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make timm's optimiser for everything in a module that trains.

    Weight decay leaves alone vectors and what the module's ``no_weight_decay()`` names.

    Args:
        module: Not wrapped: the names of its parameters must be those that it gives itself.
        config: Optimiser, weight decay and momentum.

    Raises:
        RecipeError: If timm has no such optimiser, or it needs second derivatives.
    """
    known = [str(name) for name in list_optimizers()]
    if config.optimizer not in known:
        raise RecipeError(
            f"no optimiser is called {config.optimizer!r}", hint=nearest(config.optimizer, known)
        )
    # timm's sgd is Nesterov's, which needs a momentum; "momentum" is the plain one.
    plain = config.optimizer == "sgd" and config.momentum == 0
    name = "momentum" if plain else config.optimizer
    kind = get_optimizer_class(name, bind_defaults=False)
    # One kernel for all parameters, which moreover skips a step without asking the host. torch
    # does not know how to shard each of them.
    can_fuse = "fused" in inspect.signature(kind).parameters
    is_sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
    fused: dict[str, Any] = {"fused": True} if can_fuse and not is_sharded else {}
    optimizer = create_optimizer_v2(
        module,
        opt=name,
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        **fused,
    )
    if getattr(optimizer, "is_second_order", False):
        raise RecipeError(
            f"{config.optimizer} needs second derivatives, which are not computed",
            hint="choose another train.optimizer, such as adamw",
        )
    if fused and isinstance(optimizer, torch.optim.SGD):
        _begin_at_rest(optimizer)
        optimizer.register_load_state_dict_post_hook(_begin_at_rest)
    return optimizer


def _begin_at_rest(optimizer: torch.optim.Optimizer) -> None:
    """Begin with a momentum of zero, which moves the first step as none does.

    Fused, torch makes the buffers without filling them and leaves that to the first step: skipped,
    it leaves them as the memory was. Nor can it begin with some parameters later than with others.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Compute the learning rate at a point of training.

    A linear warm-up, then the cosine over the whole number of epochs, without offset: at the end
    of the warm-up the rate drops onto the cosine, as in the papers' schedule.

    Args:
        config: The schedule.
        epoch: Epochs done, with the part of the present one.

    Source:
        OFA-KD's published configs; equal to timm's ``CosineLRScheduler``.
    """
    if epoch < config.warmup:
        return config.warmup_lr + (config.peak_lr - config.warmup_lr) * epoch / config.warmup
    if config.schedule == "constant":
        return config.peak_lr
    if config.schedule == "step":
        return config.peak_lr * config.decay_rate ** (epoch // config.decay_epochs)
    cosine = (1 + math.cos(math.pi * epoch / config.epochs)) / 2
    return config.min_lr + (config.peak_lr - config.min_lr) * cosine


class Average:
    """timm's average of a model's weights, which can leave out a step without asking the host.

    Args:
        model: Whose weights are followed; it is copied.
        config: Has ``ema_decay`` and ``ema_warmup``.

    Attributes:
        module: The model with the averaged weights.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        assert config.ema_decay is not None
        self._timm = ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup)
        self.module: Any = self._timm.module
        # Masks of attention may hold minus infinity, which has no mean.
        state = self.module.state_dict()
        self._constant = {name for name, value in state.items() if not value.isfinite().all()}

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int, moved: Float[Tensor, ""]) -> None:
        """Move every weight and running statistic a little towards the model's.

        Args:
            model: Whose weights are followed.
            step: Steps taken since the beginning.
            moved: 1, or 0 to stay where it is.
        """
        share = (1 - self._timm.get_decay(step)) * moved
        # Sharded weights and plain buffers side by side are refused by functions on lists.
        pairs = zip(self.module.state_dict().items(), model.state_dict().values(), strict=True)
        averages, targets = [], []
        for (name, average), target in pairs:
            if average.is_floating_point() and name not in self._constant:
                averages.append(local(average))
                targets.append(local(target))
            else:
                average.copy_(target)
        apart = torch._foreach_sub(targets, averages)
        torch._foreach_mul_(apart, share)
        torch._foreach_add_(averages, apart)
