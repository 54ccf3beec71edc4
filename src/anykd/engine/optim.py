"""The optimiser, its learning rate, and the average of the weights."""

import math

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3
from torch import nn

from anykd.distributed import world_size
from anykd.errors import RecipeError, nearest

from .config import TrainConfig

__all__ = ["build_ema", "build_optimizer", "learning_rate"]


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
    optimizer = create_optimizer_v2(
        module,
        opt="momentum" if plain else config.optimizer,
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
    )
    if getattr(optimizer, "is_second_order", False):
        raise RecipeError(
            f"{config.optimizer} needs second derivatives, which are not computed",
            hint="choose another train.optimizer, such as adamw",
        )
    return optimizer


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


def build_ema(model: nn.Module, config: TrainConfig) -> ModelEmaV3 | None:
    """Make the average of a model's weights, where the recipe asks for one; it copies the model."""
    if config.ema_decay is None:
        return None
    # Sharded weights and plain buffers side by side are refused by functions on lists.
    foreach = not (config.fsdp and world_size() > 1)
    return ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup, foreach=foreach)
