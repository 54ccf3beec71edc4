"""What may be amiss with the method and the settings of training."""

from collections.abc import Iterator

from anykd.engine import TrainConfig
from anykd.experiment.plan.finding import Finding
from anykd.methods import Method

__all__ = [
    "rising_learning_rate",
    "slow_average",
    "small_batch",
    "untrained_classifier",
]


def slow_average(config: TrainConfig, *, num_steps: int) -> Iterator[Finding]:
    """The average of the weights would still be mostly the first ones at the end.

    Args:
        config: Decay and warm-up.
        num_steps: Optimiser steps of the whole run.
    """
    if config.ema_decay is None or config.ema_warmup:
        return
    left = config.ema_decay**num_steps
    if left > 0.01:
        yield Finding(
            "warning",
            "slow-average",
            f"ema_decay {config.ema_decay} over {num_steps} steps leaves {left:.0%} of the first "
            "weights in the average",
            "lower it, or set ema_warmup = true",
        )


def small_batch(method: Method, batch_size: int) -> Iterator[Finding]:
    """A batch has too few images for terms that compare the images of a batch.

    Args:
        method: Whose terms.
        batch_size: Images of a step, over all ranks.
    """
    if batch_size < method.sensible_batch:
        yield Finding(
            "warning",
            "small-batch",
            f"the method compares the images of a batch, and {batch_size} are few to compare",
            f"raise train.batch_size to {method.sensible_batch} or more; the papers have hundreds",
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
