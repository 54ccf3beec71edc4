"""What may be amiss with the method and the settings of training."""

import math
from collections.abc import Iterator

from anykd.engine import TrainConfig
from anykd.experiment.plan.finding import Finding
from anykd.methods import Method

__all__ = [
    "batch_in_parts",
    "rising_learning_rate",
    "slow_average",
    "small_batch",
    "untrained_classifier",
]


def slow_average(config: TrainConfig, *, num_steps: int) -> Iterator[Finding]:
    """The average of the weights would lag behind: much of it is from the run's first half.

    Args:
        config: Decay and warm-up.
        num_steps: Optimiser steps of the whole run.
    """
    if config.ema_decay is None:
        return
    half = num_steps // 2
    # What later steps leave of what the average was in the middle of the run.
    early = math.prod(_ema_decay(config, step) for step in range(half + 1, num_steps + 1))
    if early > 0.1:
        warm_up = "" if config.ema_warmup else ", or set train.ema_warmup = true"
        yield Finding(
            "warning",
            "slow-average",
            f"with ema_decay {config.ema_decay}, {early:.0%} of the average at the end are weights "
            f"from the first half of the run's {num_steps} steps",
            f"lower train.ema_decay{warm_up}",
        )


def _ema_decay(config: TrainConfig, step: int) -> float:
    """The share of the average that a step, counted from 1, leaves; as timm's ModelEmaV3 has it."""
    assert config.ema_decay is not None
    if step == 1:
        return 0.0
    return min(config.ema_decay, 1 - step ** (-2 / 3)) if config.ema_warmup else config.ema_decay


def small_batch(method: Method, batch_size: int) -> Iterator[Finding]:
    """A batch has too few images for terms that compare the images of a batch.

    Args:
        method: Whose terms.
        batch_size: Images that are run at once, over all ranks.
    """
    if batch_size < method.sensible_batch:
        yield Finding(
            "warning",
            "small-batch",
            f"the method compares the images of a batch, and {batch_size} are few to compare",
            f"raise train.batch_size to {method.sensible_batch} or more; the papers have hundreds",
        )


def batch_in_parts(method: Method, config: TrainConfig) -> Iterator[Finding]:
    """Terms that compare the images of a batch see those of a part alone.

    Args:
        method: Whose terms.
        config: Size of the batch, and its parts.
    """
    if config.grad_accum > 1 and method.sensible_batch > 1:
        part = config.batch_size // config.grad_accum
        yield Finding(
            "note",
            "batch-in-parts",
            f"the method compares images, and with grad_accum {config.grad_accum} those of a part "
            f"of {part}, not of the batch of {config.batch_size}",
            "train.grad_checkpointing = true saves memory and compares the whole batch",
        )


def untrained_classifier(method: Method) -> Iterator[Finding]:
    """The student's class scores are not trained."""
    if not method.trains_logits:
        yield Finding(
            "warning",
            "untrained-classifier",
            "no term trains the student's classifier",
            "keep its features, and train a classifier on them",
        )


def rising_learning_rate(config: TrainConfig) -> Iterator[Finding]:
    """The cosine leads up instead of down."""
    if config.schedule == "cosine" and config.min_lr > config.peak_lr:
        yield Finding(
            "warning",
            "rising-learning-rate",
            f"min_lr {config.min_lr:g} is above peak_lr {config.peak_lr:g}: the rate rises all the "
            "time",
            "lower train.min_lr, or raise train.peak_lr",
        )
