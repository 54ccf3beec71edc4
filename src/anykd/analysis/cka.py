"""How alike two models' features are: centred kernel alignment (CKA) with linear kernels.

It compares how features tell samples apart, so they may be of any two widths. It is 1 for features
that are equal up to rotation, scale and shift.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["MinibatchCKA", "linear_cka", "minibatch_cka"]

_COLUMNS = 8192
"""Features that are turned into float64 at a time: the map of an early stage has 100,000."""


def linear_cka(
    x: Float[Tensor, "samples width_x"],
    y: Float[Tensor, "samples_y width_y"],
    *,
    unbiased: bool = False,
) -> Float[Tensor, ""]:
    r"""Compare two sets of features of the same samples.

    .. math::
        \mathrm{CKA}(X, Y) = \frac{\mathrm{HSIC}(X X^\top, Y Y^\top)}
            {\sqrt{\mathrm{HSIC}(X X^\top, X X^\top)\,\mathrm{HSIC}(Y Y^\top, Y Y^\top)}}

    Args:
        x: Features of one model, one row per sample.
        y: Features of another, or of another layer.
        unbiased: Whether HSIC is estimated without bias. The biased estimate is too large where
            there are not many more samples than features; the unbiased one is not, and may fall a
            little below 0.

    Returns:
        Scalar of float64: in [0, 1] with the biased estimate, at most 1 with the other. 0 where one
        of the two is the same for all samples.

    Raises:
        ValueError: If the numbers of samples differ, or there are fewer than 2, unbiased 4.

    Source:
        Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
        arXiv:1905.00414; unbiased HSIC: Song et al., "Feature Selection via Dependence
        Maximization", JMLR 2012, equation 5.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [4.0, 1.0]])
        >>> round(linear_cka(x, 5 * x.flip(dims=[1]) - 2).item(), 4)
        1.0
    """
    if len(x) != len(y):
        raise ValueError(f"CKA compares the same samples, got {len(x)} and {len(y)}")
    _require_samples(len(x), 4 if unbiased else 2)
    x, y = _centred(x), _centred(y)
    hsic = _unbiased_hsic if unbiased else _product
    return _ratio(hsic(x, y), hsic(x, x), hsic(y, y))


class MinibatchCKA:
    """CKA of every layer of one model with every layer of another, a batch at a time.

    HSIC is estimated without bias in each batch and averaged over the batches, so the result does
    not depend on how large they are, apart from noise.

    Args:
        num_x: Layers of the first model.
        num_y: Layers of the second.

    Attributes:
        num_samples: Samples seen so far.

    Source:
        Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021,
        arXiv:2010.15327, equations 2 to 4.
    """

    def __init__(self, num_x: int, num_y: int) -> None:
        self._xy = torch.zeros(num_x, num_y, dtype=torch.float64)
        self._xx = torch.zeros(num_x, dtype=torch.float64)
        self._yy = torch.zeros(num_y, dtype=torch.float64)
        self.num_samples = 0

    @torch.no_grad()
    def update(
        self,
        x: Sequence[Float[Tensor, "samples ..."]],
        y: Sequence[Float[Tensor, "samples_y ..."]],
    ) -> None:
        """Count one more batch.

        Args:
            x: What each layer of the first model makes of it; maps are taken as long vectors.
            y: Likewise of the second model.

        Raises:
            ValueError: If there are fewer than 4 samples, of which nothing can be estimated, or not
                the same number everywhere, or other numbers of layers than were announced.
        """
        if (len(x), len(y)) != tuple(self._xy.shape):
            expected = " and ".join(map(str, self._xy.shape))
            raise ValueError(f"there are {expected} layers, got {len(x)} and {len(y)}")
        counts = {len(features) for features in (*x, *y)}
        if len(counts) != 1:
            raise ValueError(f"CKA compares the same samples, got {sorted(counts)}")
        (count,) = counts
        _require_samples(count, 4)
        kernels_x, kernels_y = (torch.stack([_kernel(f) for f in layers]) for layers in (x, y))
        scale = count * (count - 3)
        self._xy += (kernels_x @ kernels_y.T / scale).to(self._xy.device)
        self._xx += (kernels_x.square().sum(dim=1) / scale).to(self._xx.device)
        self._yy += (kernels_y.square().sum(dim=1) / scale).to(self._yy.device)
        self.num_samples += count

    def compute(self) -> Float[Tensor, "layers_x layers_y"]:
        """CKA of the batches so far, as of `linear_cka` with ``unbiased``; in float64.

        Raises:
            ValueError: If there was no batch.
        """
        if not self.num_samples:
            raise ValueError("there was no batch to compare models by")
        return _ratio(self._xy, self._xx[:, None], self._yy[None, :])


def minibatch_cka(
    batches: Iterable[tuple[Float[Tensor, "samples ..."], Float[Tensor, "samples ..."]]],
) -> Float[Tensor, ""]:
    """Compare two sets of features that are too large to be held at once.

    Args:
        batches: Features of both of the same samples, a batch at a time, each of 4 or more.

    Returns:
        Scalar of float64, as of `linear_cka` with ``unbiased``; for one batch the same number.

    Raises:
        ValueError: As of `MinibatchCKA`.

    Source:
        As of `MinibatchCKA`.

    Example:
        >>> import torch
        >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        >>> round(minibatch_cka((part, 3 * part) for part in x.split(16)).item(), 4)
        1.0
    """
    cka = MinibatchCKA(1, 1)
    for x, y in batches:
        cka.update([x], [y])
    return cka.compute()[0, 0]


def _require_samples(count: int, needed: int) -> None:
    if count < needed:
        raise ValueError(f"CKA needs {needed} samples or more, got {count}")


def _centred(features: Float[Tensor, "samples width"]) -> Float[Tensor, "samples width"]:
    # Counted from the first sample, a constant feature is exactly 0, not what rounding leaves.
    features = features.double() - features[:1].double()
    return features - features.mean(dim=0)


def _product(
    x: Float[Tensor, "samples width_x"], y: Float[Tensor, "samples width_y"]
) -> Float[Tensor, ""]:
    """Sum of the products of two kernel matrices' entries, by whichever way takes less."""
    if len(x) < max(x.shape[1], y.shape[1]):
        return ((x @ x.T) * (y @ y.T)).sum()
    return (x.T @ y).square().sum()


def _unbiased_hsic(
    x: Float[Tensor, "samples width_x"], y: Float[Tensor, "samples width_y"]
) -> Float[Tensor, ""]:
    """HSIC of two kernels whose diagonals do not count; the features are centred."""
    count = len(x)
    diagonal_x, diagonal_y = x.square().sum(dim=1), y.square().sum(dim=1)
    # Centred features sum to 0, and so do the rows of their kernel: without the diagonal they sum
    # to its negative.
    total = diagonal_x.sum() * diagonal_y.sum() / ((count - 1) * (count - 2))
    rows = (diagonal_x * diagonal_y).sum()
    pairs = _product(x, y) - rows
    return (pairs + total - 2 / (count - 2) * rows) / (count * (count - 3))


def _kernel(features: Float[Tensor, "samples ..."]) -> Float[Tensor, " pairs"]:
    """A layer's linear kernel, centred so that products of two give the unbiased HSIC.

    Source:
        Székely & Rizzo, "Partial Distance Correlation with Methods for Dissimilarities", Annals of
        Statistics 2014, arXiv:1310.2926, definition 2 (U-centring).
    """
    count = len(features)
    if features.device.type == "mps":  # it has no float64
        features = features.cpu()
    kernel = torch.zeros(count, count, dtype=torch.float64, device=features.device)
    for columns in features.flatten(start_dim=1).split(_COLUMNS, dim=1):
        part = _centred(columns)
        kernel += part @ part.T
    kernel.fill_diagonal_(0)
    rows = kernel.sum(dim=0) / (count - 2)
    kernel += rows.sum() / (count - 1) - rows[:, None] - rows[None, :]
    return kernel.fill_diagonal_(0).flatten()


def _ratio(
    xy: Float[Tensor, "*layers"], xx: Float[Tensor, "*#layers"], yy: Float[Tensor, "*#layers"]
) -> Float[Tensor, "*layers"]:
    """HSIC over the root of the product of both with themselves; 0 where that is 0."""
    scale = xx.clamp_min(0).sqrt() * yy.clamp_min(0).sqrt()
    varies = scale != 0  # NaN passes, to be seen in the result
    return (xy / scale.where(varies, 1)).where(varies, 0)
