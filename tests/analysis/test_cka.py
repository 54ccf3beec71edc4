import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from anykd.analysis import MinibatchCKA, linear_cka, minibatch_cka


def biased_by_hand(x, y):
    """Kornblith et al., with the centring matrix written out."""
    count = len(x)
    centre = np.eye(count) - 1 / count

    def hsic(k, m):
        return np.trace(centre @ k @ centre @ m) / (count - 1) ** 2

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def hsic_by_hand(x, y):
    """Song et al., equation 5."""
    count, ones = len(x), np.ones(len(x))
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    found = np.trace(k @ m)
    found += ones @ k @ ones * (ones @ m @ ones) / ((count - 1) * (count - 2))
    found -= 2 / (count - 2) * (ones @ k @ m @ ones)
    return found / (count * (count - 3))


def unbiased_by_hand(x, y):
    return hsic_by_hand(x, y) / np.sqrt(hsic_by_hand(x, x) * hsic_by_hand(y, y))


def features(samples=40, widths=(7, 13), seed=0):
    """Two that share a part, far from 0."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(samples, 3))
    return [
        shared @ rng.normal(size=(3, width)) + rng.normal(size=(samples, width)) + 5
        for width in widths
    ]


# Fewer and more features than samples: both ways to the product of kernels.
WIDTHS = [(7, 13), (200, 13), (64, 90), (1, 1)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_biased_cka_is_the_formula(widths):
    x, y = features(widths=widths)
    found = linear_cka(torch.tensor(x), torch.tensor(y))
    assert found.item() == pytest.approx(biased_by_hand(x, y), rel=1e-9)
    assert found.dtype == torch.float64


@pytest.mark.parametrize("widths", WIDTHS)
def test_unbiased_cka_is_the_formula(widths):
    x, y = features(widths=widths)
    found = linear_cka(torch.tensor(x), torch.tensor(y), unbiased=True)
    assert found.item() == pytest.approx(unbiased_by_hand(x, y), rel=1e-9)


def test_cka_of_one_feature_is_the_squared_correlation():
    x, y = features(widths=(1, 1))
    correlation = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    found = linear_cka(torch.tensor(x), torch.tensor(y))
    assert found.item() == pytest.approx(correlation**2, rel=1e-9)


def test_cka_follows_from_distances_alone():
    x, y = features()
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = (-0.5 * centre @ squareform(pdist(z)) ** 2 @ centre for z in (x, y))
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(torch.tensor(x), torch.tensor(y)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
def test_rotation_scale_and_shift_change_nothing(unbiased):
    x, y = map(torch.tensor, features())
    turned = 3 * y @ torch.linalg.qr(torch.randn(13, 13, dtype=torch.float64)).Q - 100
    expected = linear_cka(x, y, unbiased=unbiased)
    torch.testing.assert_close(linear_cka(x, turned, unbiased=unbiased), expected)
    torch.testing.assert_close(linear_cka(y, x, unbiased=unbiased), expected)
    assert linear_cka(y, turned, unbiased=unbiased).item() == pytest.approx(1)


def test_only_the_unbiased_estimate_sees_that_noise_has_nothing_in_common():
    x, y = torch.randn(2, 30, 500)
    assert linear_cka(x, y) > 0.8
    assert abs(linear_cka(x, y, unbiased=True)) < 0.1


@pytest.mark.parametrize("unbiased", [False, True])
def test_features_that_do_not_vary_have_nothing_in_common(unbiased):
    x = torch.randn(6, 3)
    constant = torch.full((6, 4), 1e6 / 3)
    assert linear_cka(x, constant, unbiased=unbiased) == 0
    assert linear_cka(constant, constant, unbiased=unbiased) == 0
    assert minibatch_cka([(x, constant)]) == 0


@pytest.mark.parametrize("unbiased", [False, True])
def test_what_is_no_number_is_seen(unbiased):
    x = torch.randn(6, 3)
    broken = x.clone()
    broken[2, 1] = torch.nan
    assert linear_cka(x, broken, unbiased=unbiased).isnan()
    assert minibatch_cka([(x, broken)]).isnan()


def test_half_precision_is_computed_in_float64():
    x, y = (torch.tensor(z, dtype=torch.float16) for z in features())
    expected = unbiased_by_hand(x.double().numpy(), y.double().numpy())
    assert minibatch_cka([(x, y)]).item() == pytest.approx(expected, rel=1e-9)
    assert linear_cka(x, y, unbiased=True).item() == pytest.approx(expected, rel=1e-9)


def test_minibatch_cka_averages_hsic_over_batches():
    x, y = features(samples=50)
    parts = [(x[:20], y[:20]), (x[20:32], y[20:32]), (x[32:], y[32:])]
    xy, xx, yy = (
        np.mean([hsic_by_hand(*pair(*part)) for part in parts])
        for pair in (lambda x, y: (x, y), lambda x, y: (x, x), lambda x, y: (y, y))
    )
    found = minibatch_cka((torch.tensor(x), torch.tensor(y)) for x, y in parts)
    assert found.item() == pytest.approx(xy / np.sqrt(xx * yy), rel=1e-9)


def test_every_layer_meets_every_other():
    layers_x = [torch.randn(20, 3, 4, 4), torch.randn(20, 10_000)]
    layers_y = [torch.randn(20, 5), torch.randn(20, 2, 3), layers_x[0] * 2]
    cka = MinibatchCKA(2, 3)
    cka.update(layers_x, layers_y)
    expected = [
        [unbiased_by_hand(*(z.flatten(1).double().numpy() for z in (x, y))) for y in layers_y]
        for x in layers_x
    ]
    torch.testing.assert_close(cka.compute(), torch.tensor(expected, dtype=torch.float64))
    assert cka.compute()[0, 2].item() == pytest.approx(1)
    assert cka.num_samples == 20


def test_the_size_of_batches_changes_little():
    x, y = (torch.tensor(z) for z in features(samples=4000))
    few, many = (
        minibatch_cka(zip(x.split(size), y.split(size), strict=True)) for size in (16, 400)
    )
    assert abs(few - many) < 0.01


def test_what_cannot_be_compared_is_refused():
    x = torch.randn(6, 3)
    with pytest.raises(ValueError, match="the same samples, got 6 and 5"):
        linear_cka(x, x[:5])
    with pytest.raises(ValueError, match="needs 4 samples or more, got 3"):
        linear_cka(x[:3], x[:3], unbiased=True)
    with pytest.raises(ValueError, match="needs 4 samples or more, got 3"):
        minibatch_cka([(x[:3], x[:3])])
    with pytest.raises(ValueError, match=r"the same samples, got \[5, 6\]"):
        MinibatchCKA(1, 1).update([x], [x[:5]])
    with pytest.raises(ValueError, match="there are 1 and 2 layers, got 1 and 1"):
        MinibatchCKA(1, 2).update([x], [x])
    with pytest.raises(ValueError, match="no batch"):
        minibatch_cka([])
