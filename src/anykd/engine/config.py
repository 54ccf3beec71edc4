"""How long, how fast and in which precision to train."""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from anykd.config import FrozenConfig

__all__ = ["TrainConfig"]


class TrainConfig(FrozenConfig):
    """The ``[train]`` table of a recipe."""

    epochs: PositiveInt = 100
    """Passes over the training set."""
    batch_size: PositiveInt = 128
    """Images per optimiser step, summed over all ranks and over ``grad_accum`` parts."""
    grad_accum: PositiveInt = 1
    """Parts that a step's images are run in, one after the other, before the optimiser moves: the
    memory of a part, the gradient of the whole. Terms that compare images compare those of a part,
    and batch norms normalise by a part."""
    optimizer: str = "adamw"
    """Any of timm's optimisers; sgd has Nesterov momentum."""
    peak_lr: PositiveFloat = 1e-3
    """Learning rate after warm-up, used as written for any batch size."""
    min_lr: NonNegativeFloat = 1e-5
    """Learning rate that the cosine decays towards."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum, for optimisers that have one."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay; biases, norms and what the model names itself are left alone."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_epochs: NonNegativeFloat | None = None
    """Epochs of linear warm-up, fewer than epochs; None takes a tenth of them, 5 at most."""
    warmup_lr: NonNegativeFloat = 1e-6
    """Learning rate at the start of the warm-up."""
    decay_epochs: PositiveInt = 30
    """Epochs between two decays of the step schedule."""
    decay_rate: PositiveFloat = 0.1
    """Factor at each decay of the step schedule."""
    lr_update: Literal["step", "epoch"] = "step"
    """Move the learning rate with every optimiser step, or once an epoch as the papers do."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each label spread evenly over all classes."""
    clip_grad: PositiveFloat | None = None
    """Largest norm of the whole gradient; None leaves it."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an average of the student's weights, which is then what is evaluated and saved."""
    ema_warmup: bool = True
    """Let the average follow fast at first: decay at most 1 - (1 + steps) ** (-2/3)."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Of matrix products and convolutions; auto is bf16 where that is faster: GPUs since
    Ampere, processors with AMX. fp16 scales the loss, so that small gradients survive; its
    first steps may be skipped while the scale is found."""
    channels_last: bool = True
    """Keep images and convolutions in channels-last layout."""
    compile: bool | Literal["partial", "cuda_graphs"] = False
    """Let torch.compile make one program of student, teacher and method; it needs a C++ compiler on
    processors, and its first steps take minutes. "partial" leaves to Python what does not fit into
    one program. "cuda_graphs" also records the program's kernels, so that a GPU starts all of them
    at once: for small models, whose kernels are done before the processor can start the next."""
    grad_checkpointing: bool = False
    """Keep no activations inside the student's blocks, and compute them again in the backward pass:
    less memory, about a third more time, the same numbers."""
    fsdp: bool = False
    """Shard the student's weights, gradients and optimiser state over the ranks (FSDP2), instead of
    keeping all of them on each."""
    sync_bn: bool = False
    """Let batch norms in training normalise by the images of all ranks; on GPUs alone."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute: auto takes this rank's GPU where there is one, otherwise the processor."""
    log_every: PositiveInt = 50
    """Optimiser steps between two lines of the metrics."""
    diagnoses: NonNegativeInt = 10
    """How often over a run a step is looked at closely, spread evenly over its epochs with the
    first and the last: what each term of the loss weighs in the student's gradient, and the
    teachers' share of the time. Such a step takes longer, by a backward pass for each term, and a
    copy of the student's gradient more memory; what it trains is the same to the bit. 0 never
    looks. With ``compile`` or ``fsdp`` it cannot be done, and is left out."""
    checkpoint_every: PositiveInt | None = None
    """Optimiser steps between two checkpoints within an epoch; there is always one at its end."""
    max_bad_steps: PositiveInt = 10
    """Steps in a row without a finite loss and gradient after which the run stops; each is skipped
    and counted."""
    eval_every: PositiveInt = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""

    @model_validator(mode="after")
    def _warm_up_ends_before_training(self) -> "TrainConfig":
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs = {self.epochs}, got {self.warmup_epochs}"
            )
        return self

    @model_validator(mode="after")
    def _graphs_hold_one_gradient(self) -> "TrainConfig":
        if self.compile == "cuda_graphs" and self.grad_accum > 1:
            raise ValueError(
                'compile = "cuda_graphs" overwrites the gradients of the part before: set '
                "grad_accum = 1, or compile = true"
            )
        return self

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, with the default filled in."""
        return min(5.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs
