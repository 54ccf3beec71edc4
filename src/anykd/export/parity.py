"""Whether an exported file says what the student says."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anykd.errors import ModelError

__all__ = ["Parity", "compare", "first", "run_in_batches"]

Answers = Float[Tensor, "images classes"]

_ROUNDING = 1e-4
"""Largest difference of two float32 computations of one network, as a share of its largest score.

Both round to 6e-8 and sum in other orders. Students measured so far stayed below 1e-5; a wrong
weight, mean or activation moves scores by 1e-3 of their size or more."""

_LEAST_SCORE = 0.1
"""Scores of networks that have learnt nothing yet are small, while what they are sums of is not."""

_LEAST_AGREEMENT = 50.0
"""Percent of images: below it integers have destroyed the network rather than rounded it."""


@dataclass(frozen=True)
class Parity:
    """How far the student and an exported file of it are apart on held-out images.

    Attributes:
        num_images: They were compared on.
        max_logit_difference: Largest absolute difference of an output.
        max_probability_difference: Of a class's probability; None without classes.
        tolerated: What rounding may explain of ``max_logit_difference``; None for a file of
            integers, which is another network.
        agreement: Percent of the images with the same best class; None without classes.
        top1: Accuracy of the student in percent; None without labels.
        exported_top1: Accuracy of the file.
    """

    num_images: int
    max_logit_difference: float
    max_probability_difference: float | None
    tolerated: float | None
    agreement: float | None
    top1: float | None
    exported_top1: float | None

    def require(self, what: str) -> None:
        """Refuse a file that is not the student.

        Args:
            what: It is, such as ``the ONNX file``.

        Raises:
            ModelError: If it differs by more than it may.
        """
        if self.tolerated is not None:
            # Written so that NaN does not hold.
            if self.max_logit_difference <= self.tolerated:
                return
            said = (
                f"its scores differ by up to {self.max_logit_difference:.3g}, and rounding "
                f"explains {self.tolerated:.3g}"
            )
        else:
            if self.agreement is None or self.agreement >= _LEAST_AGREEMENT:
                return
            said = f"the two choose the same class for {self.agreement:.1f} % of them"
        raise ModelError(
            f"{what} does not do what the student does on {self.num_images} held-out images: "
            f"{said}; it was not kept",
            hint="export without --int8"
            if self.tolerated is None
            else "export to another format, and please report this student's recipe",
        )


def compare(
    student: Answers,
    exported: Float[Tensor, "images outputs"],
    labels: Int[Tensor, " images"] | None,
    *,
    has_classes: bool = True,
    is_exact: bool = True,
) -> Parity:
    """Compare two answers to the same images.

    Args:
        student: Of the student in eager mode.
        exported: Of the file.
        labels: Class indices; None without labels.
        has_classes: Whether the outputs are class scores.
        is_exact: Whether the file should say the same but for rounding.

    Raises:
        ModelError: If the answers are of other shapes.
    """
    if student.shape != exported.shape:
        raise ModelError(
            f"the exported file gives {tuple(exported.shape)}, the student {tuple(student.shape)}"
        )
    largest = max(_LEAST_SCORE, float(student.abs().max()))
    probability = (student.softmax(dim=1) - exported.softmax(dim=1)).abs().max()
    ours, theirs = student.argmax(dim=1), exported.argmax(dim=1)
    known = labels is not None and has_classes
    return Parity(
        num_images=len(student),
        max_logit_difference=float((student - exported).abs().max()),
        max_probability_difference=float(probability) if has_classes else None,
        tolerated=_ROUNDING * largest if is_exact else None,
        agreement=_percent(ours == theirs) if has_classes else None,
        top1=_percent(ours == labels) if known else None,
        exported_top1=_percent(theirs == labels) if known else None,
    )


def run_in_batches(
    run: Callable[[Tensor], Tensor], inputs: Tensor, sizes: Sequence[int]
) -> Answers:
    """Give all images to a file, in batches of several sizes, as a dynamic batch has to bear.

    Args:
        run: From a batch of inputs to its outputs.
        inputs: All of them.
        sizes: Of the batches; the last one's is that of all that follow.
    """
    own = [*sizes[:-1], *[sizes[-1]] * (len(inputs) // sizes[-1] + 1)]
    starts = [0, *itertools.accumulate(own)]
    batches = (inputs[start : start + size] for start, size in zip(starts, own, strict=False))
    return torch.cat([run(batch).float() for batch in batches if len(batch)])


def first(inputs: Tensor, count: int) -> Tensor:
    """The first inputs, again and again where they are fewer."""
    repeats = -(-count // len(inputs))
    return torch.cat([inputs] * repeats)[:count].contiguous()


def _percent(which: Tensor) -> float:
    return round(100 * float(which.double().mean()), 4)
