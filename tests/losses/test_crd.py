"""crd_loss against NumPy, against cases by hand, and against its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from anykd.losses import crd_loss
from tests.golden import make

HALVES = [torch.float32, torch.bfloat16, torch.float16]

positives = arrays(np.float64, 4, elements=st.floats(-5, 5)).map(torch.from_numpy)
negatives = arrays(np.float64, (4, 3), elements=st.floats(-5, 5)).map(torch.from_numpy)
numbers = st.integers(1, 10**6)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


def trained(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@pytest.fixture
def scores() -> list[Tensor]:
    """Scores of 6 samples with 5 negatives each, float64."""
    return trained(3 * torch.randn(6, dtype=torch.float64), 3 * torch.randn(6, 5).double() - 2)


class TestCRDLoss:
    def test_mean_over_samples_and_sum_over_negatives_by_hand(self):
        # Noise 2 / 4. Own pairs of density 3/2 and 1/2: 3/4 and 1/2 are to be theirs. Drawn pairs
        # of density 1/2, 1 and 3/2, 1/2: 1/2, 1/3 and 1/4, 1/2 are to be noise.
        positive = torch.tensor([1.5, 0.5]).log()
        negative = torch.tensor([[0.5, 1.0], [1.5, 0.5]]).log()
        first = -math.log(3 / 4) - math.log(1 / 2) - math.log(1 / 3)
        second = -math.log(1 / 2) - math.log(1 / 4) - math.log(1 / 2)
        loss = crd_loss(positive, negative, num_samples=4, eps=0.0)
        assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)

    def test_eps_stands_in_both_denominators_by_hand(self):
        loss = crd_loss(torch.zeros(1), torch.zeros(1, 1), num_samples=1, eps=2.0)
        assert loss.item() == pytest.approx(-math.log(1 / 4) - math.log(1 / 4), rel=1e-6)

    @pytest.mark.parametrize("num_samples", [1, 10, 50000, 1281167])
    @pytest.mark.parametrize("eps", [0.0, 1e-7, 0.01])
    def test_value_and_gradients_match_numpy(self, scores, num_samples, eps):
        def reference(positive, negative):
            return make.crd(positive, negative, num_samples=num_samples, eps=eps)

        loss = crd_loss(*scores, num_samples=num_samples, eps=eps)
        actual = gradients(loss, *scores)
        assert loss.item() == pytest.approx(reference(*numpy(*scores)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(reference, *numpy(*scores), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-9, atol=1e-14)

    def test_the_papers_eps_is_the_default(self, scores):
        expected = crd_loss(*scores, num_samples=10**7, eps=1e-7)
        assert crd_loss(*scores, num_samples=10**7) == expected

    @pytest.mark.parametrize("spread", [3.0, 30.0])
    def test_float32_is_close_to_float64(self, spread):
        singles = trained(spread * torch.randn(8), spread * torch.randn(8, 512))
        exact = trained(*(z.double() for z in singles))
        loss, expected = (crd_loss(*z, num_samples=50000) for z in (singles, exact))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-12)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("sign", [1, -1])
    def test_extreme_scores_by_hand(self, dtype, sign):
        # A score of 1000 beyond the noise costs 1000 nats on the wrong side, 0 on the right one.
        positive = torch.full((2,), -1000.0 * sign, dtype=dtype, requires_grad=True)
        negative = torch.full((2, 3), 1000.0 * sign, dtype=dtype, requires_grad=True)
        loss = crd_loss(positive, negative, num_samples=12, eps=0.0)
        noise = math.log(3 / 12)
        expected = (1000 + noise) + 3 * (1000 - noise) if sign == 1 else 0
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        found = gradients(loss, positive, negative)
        np.testing.assert_allclose(found[0], -0.5 if sign == 1 else 0, atol=1e-6)
        np.testing.assert_allclose(found[1], 0.5 if sign == 1 else 0, atol=1e-6)

    def test_scores_well_beyond_the_noise_keep_their_last_digits(self):
        # Where F.softplus, which one would write, gives up the exponential.
        score = torch.tensor([21.0], dtype=torch.float64)
        loss = crd_loss(-score, score[None], num_samples=1, eps=0.0)
        assert loss.item() == pytest.approx(2 * (21 + math.log1p(math.exp(-21))), rel=1e-13)

    @given(positives, negatives, numbers)
    def test_is_at_least_0(self, positive, negative, num_samples):
        assert crd_loss(positive, negative, num_samples=num_samples).item() >= 0

    @given(positives, negatives, numbers, st.integers(0, 3), st.floats(0.1, 5))
    def test_a_higher_positive_score_lowers_it(
        self, positive, negative, num_samples, sample, change
    ):
        before = crd_loss(positive, negative, num_samples=num_samples)
        positive = positive.clone()
        positive[sample] += change
        assert crd_loss(positive, negative, num_samples=num_samples) < before

    @given(positives, negatives, numbers, st.integers(0, 3), st.integers(0, 2), st.floats(0.1, 5))
    def test_a_lower_negative_score_lowers_it(
        self, positive, negative, num_samples, sample, which, change
    ):
        before = crd_loss(positive, negative, num_samples=num_samples)
        negative = negative.clone()
        negative[sample, which] -= change
        assert crd_loss(positive, negative, num_samples=num_samples) < before

    @given(positives, negatives, numbers, st.permutations(range(4)), st.permutations(range(3)))
    def test_order_of_samples_and_negatives_is_irrelevant(
        self, positive, negative, num_samples, order, draws
    ):
        expected = crd_loss(positive, negative, num_samples=num_samples).item()
        shuffled = negative[order][:, draws]
        actual = crd_loss(positive[order], shuffled, num_samples=num_samples).item()
        assert actual == pytest.approx(expected, rel=1e-12)

    def test_a_batch_of_one_counts_like_any_sample(self, scores):
        positive, negative = scores
        ones = [
            crd_loss(positive[i : i + 1], negative[i : i + 1], num_samples=50).item()
            for i in range(6)
        ]
        assert np.mean(ones) == pytest.approx(crd_loss(*scores, num_samples=50).item())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, scores, dtype):
        halves = [z.detach().to(dtype) for z in scores]
        raised = [z.float() for z in halves]
        assert crd_loss(*halves, num_samples=100) == crd_loss(*raised, num_samples=100)

    def test_autocast_changes_neither_value_nor_gradient(self, scores):
        single = trained(*(z.float() for z in scores))
        outside = crd_loss(*single, num_samples=100)
        with torch.autocast("cpu", torch.bfloat16):
            inside = crd_loss(*single, num_samples=100)
        assert inside == outside
        for ours, theirs in zip(
            gradients(inside, *single), gradients(outside, *single), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("num_samples", [0, -5])
    def test_refuses_a_number_of_samples_that_is_not_positive(self, num_samples):
        with pytest.raises(ValueError, match=f"num_samples must be positive, got {num_samples}"):
            crd_loss(torch.zeros(2), torch.zeros(2, 3), num_samples=num_samples)

    @pytest.mark.parametrize("eps", [-1e-7, math.nan])
    def test_refuses_a_negative_eps(self, eps):
        with pytest.raises(ValueError, match=f"eps must be at least 0, got {eps}"):
            crd_loss(torch.zeros(2), torch.zeros(2, 3), num_samples=10, eps=eps)

    def test_refuses_scores_without_negatives(self):
        with pytest.raises(ValueError, match="got none for each sample"):
            crd_loss(torch.zeros(2), torch.zeros(2, 0), num_samples=10)
