"""A linear classifier on a teacher's pooled features, for data whose classes it does not know."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn

from anykd.data import DataSplits, EvalLoader, SubsetReader, hold_out, keep
from anykd.engine import autocast
from anykd.errors import CheckpointError, DataError, RecipeError
from anykd.models import FrozenTeacher
from anykd.recipe import Recipe

__all__ = ["HeadScores", "LinearHead", "fit_head", "fit_linear", "load_head", "save_head"]

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The values of C, scikit-learn's inverse weight of the penalty, that are tried; ascending."""
_HELD_OUT = 0.1
_MAX_ITERATIONS = 300


@dataclass(frozen=True)
class HeadScores:
    """How well a head does on images that are all of the training set.

    Attributes:
        num_samples: Images that it was fitted on.
        top1: Percent of these whose best class is the label.
        held_out_samples: Images that only chose ``strength``; 0 where no class had one to spare.
        held_out_top1: Percent of these; None without any.
        strength: C, the inverse weight of the penalty.
    """

    num_samples: int
    top1: float
    held_out_samples: int
    held_out_top1: float | None
    strength: float


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier.

    Attributes:
        weight: One row per class.
        bias: One number per class.
        scores: How well it does.
    """

    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]
    scores: HeadScores

    def as_layer(self) -> nn.Linear:
        """The layer that `StagedModel.replace_classifier` takes."""
        num_classes, width = self.weight.shape
        layer = nn.Linear(width, num_classes)
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)
        return layer


def fit_head(
    teacher: FrozenTeacher,
    data: DataSplits,
    recipe: Recipe,
    *,
    max_samples: int,
    crop_pct: float | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> LinearHead:
    """Fit a head on the plain views of training images.

    Args:
        teacher: On its device already.
        data: With labels.
        recipe: Its seed decides which images are taken and which of them are held out.
        max_samples: Images, at most; each class has its share.
        crop_pct: Share of the short side that is seen; None takes the recipe's.
        device: Where the teacher runs.
        dtype: Type for autocast, or None.

    Raises:
        DataError: If a class has no image to fit the head on.
        RecipeError: If that is for want of ``max_samples``.
    """
    labels = data.train.labels
    assert labels is not None
    positions: Sequence[int] = range(len(labels))
    if max_samples < len(labels):
        positions = keep(labels, max_samples, seed=recipe.seed)
    chosen = [labels[position] for position in positions]
    _require_every_class(chosen, labels, data, max_samples)
    update = {} if crop_pct is None else {"crop_pct": crop_pct}
    loader = EvalLoader(
        SubsetReader(data.train, positions),
        num_classes=data.num_classes,
        image_size=teacher.image_size,
        batch_size=min(recipe.train.batch_size, 256),
        augment=recipe.augment.model_copy(update=update),
        **recipe.data.loading,
    )
    vectors: list[Tensor] = []
    seen: list[int] = []
    for batch in loader:
        with autocast(device, dtype):
            vectors.append(teacher(batch.images.to(device)).pooled.float().cpu())
        assert batch.indices is not None
        seen += [chosen[index] for index in batch.indices.tolist()]
    _require_every_class(seen, labels, data, max_samples)  # those that can be read
    return fit_linear(torch.cat(vectors), seen, num_classes=data.num_classes, seed=recipe.seed)


def fit_linear(
    features: Float[Tensor, "samples width"],
    labels: Sequence[int],
    *,
    num_classes: int,
    seed: int,
) -> LinearHead:
    r"""Fit a penalised logistic regression and choose its penalty on held-out images.

    Features are standardised with the mean :math:`\mu` and deviation :math:`\sigma` of those that
    are fitted; for the weights :math:`W, b` found there, the head is
    :math:`W' = W / \sigma,\; b' = b - W' \mu`, which takes the features as they come. A tenth of
    the images, of every class its share, chooses C by the lower cross-entropy, since a teacher's
    probabilities count and not its best class alone; they have no other part in the head.

    Args:
        features: Pooled vectors.
        labels: Class index of each; every class has one or more.
        num_classes: Two or more.
        seed: Decides what is held out.
    """
    x, y = features.double().numpy(), np.asarray(labels)
    try:
        fitted, held = hold_out(labels, _HELD_OUT, seed=seed)
    except DataError:  # no class has an image to spare
        fitted, held = list(range(len(y))), []
    mean, std = x[fitted].mean(axis=0), x[fitted].std(axis=0)
    std[std == 0] = 1
    x = (x - mean) / std
    model = LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for strength in _STRENGTHS if held else (1.0,):
        model.set_params(C=strength)
        with warnings.catch_warnings():
            # The held-out images judge the result, whether or not it could be a little better.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[fitted], y[fitted])
        loss = 0.0
        if held:
            loss = float(log_loss(y[held], model.predict_proba(x[held]), labels=range(num_classes)))
        if best is not None and loss >= best[0]:
            break  # a weaker penalty costs more time and would only fit the images closer
        best = (loss, strength, np.array(model.coef_), np.array(model.intercept_))
    assert best is not None
    _, strength, weight, bias = best
    if num_classes == 2:  # scikit-learn gives the log-odds of the second class
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    right = (x @ weight.T + bias).argmax(axis=1) == y
    scores = HeadScores(
        num_samples=len(fitted),
        top1=100 * float(right[fitted].mean()),
        held_out_samples=len(held),
        held_out_top1=100 * float(right[held].mean()) if held else None,
        strength=strength,
    )
    folded = weight / std
    return LinearHead(
        torch.from_numpy(folded).float(), torch.from_numpy(bias - folded @ mean).float(), scores
    )


def save_head(head: LinearHead, path: Path) -> None:
    """Write a head as safetensors, its scores as metadata."""
    tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
    save_file(tensors, path, metadata={"scores": json.dumps(asdict(head.scores))})


def load_head(path: Path) -> LinearHead:
    """Read what `save_head` wrote.

    Raises:
        CheckpointError: If the file is no such head.
    """
    try:
        with safe_open(path, framework="pt") as file:
            values: dict[str, Any] = json.loads(file.metadata()["scores"])
            return LinearHead(
                file.get_tensor("weight"), file.get_tensor("bias"), HeadScores(**values)
            )
    except Exception as error:
        raise CheckpointError(
            f"{path} is not the head of a teacher: {error}",
            hint="start a new run, which fits it anew",
        ) from error


def _require_every_class(
    chosen: Sequence[int], labels: Sequence[int], data: DataSplits, max_samples: int
) -> None:
    """Refuse to fit a head that would never have seen one of its classes."""
    missing = sorted(set(range(data.num_classes)) - set(chosen))
    if not missing:
        return
    name = data.class_names[missing[0]]
    if missing[0] in labels:
        raise RecipeError(
            f"teacher.head_samples = {max_samples} leaves the class {name!r} of {data.name} without"
            " an image",
            hint="raise it: every class needs one to fit a head on",
        )
    raise DataError(
        f"{data.name} has no training image of {name!r}, so that no head can be fitted for it",
        hint="add images, or raise data.limit",
    )
