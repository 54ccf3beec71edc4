"""dist_loss against NumPy, against cases by hand, and against its laws."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from anykd.losses import dist_loss
from tests.golden import make

HALVES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = [
    {},
    {"temperature": 4.0, "inter_weight": 2.0, "intra_weight": 0.5},
    {"temperature": 0.5, "inter_weight": 3, "intra_weight": 0},
    {"temperature": 2, "inter_weight": 0, "intra_weight": 1},
]

# The sine keeps rows and columns away from equal numbers, where correlation is not continuous.
scores = arrays(np.int64, (6, 5), elements=st.integers(-6, 6)).map(
    lambda x: torch.from_numpy(x + np.sin(np.arange(30) ** 2).reshape(6, 5))
)
temperatures = st.floats(0.5, 8.0)
weights = st.floats(0.0, 8.0)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


def logs(*rows: list[float]) -> Tensor:
    """Scores whose softmax is these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


class TestDISTLoss:
    def test_classes_within_a_sample_by_hand(self):
        # Deviations (1, 0, -1)/6 and (0, 1, -1)/6 from 1/3: ρ = 1 / (√2 √2).
        student, teacher = logs([3 / 6, 2 / 6, 1 / 6]), logs([2 / 6, 3 / 6, 1 / 6])
        loss = dist_loss(student, teacher, inter_weight=3, intra_weight=0)
        assert loss.item() == pytest.approx(3 * (1 - 0.5))

    def test_samples_within_a_class_by_hand(self):
        # Columns of p_s: (.1, .2, .3) and its mirror; of p_t: (.1, .3, .2) and its mirror.
        # Deviations (-1, 0, 1)/10 and (-1, 1, 0)/10: ρ = 1 / (√2 √2) in both columns.
        student, teacher = (
            logs([a, 1 - a], [b, 1 - b], [c, 1 - c])
            for a, b, c in ((0.1, 0.2, 0.3), (0.1, 0.3, 0.2))
        )
        loss = dist_loss(student, teacher, inter_weight=0, intra_weight=5)
        assert loss.item() == pytest.approx(5 * (1 - 0.5))

    def test_temperature_by_hand(self):
        # Scores twice as large at T = 2 give the distributions of the first case, and T² = 4.
        student, teacher = 2 * logs([3 / 6, 2 / 6, 1 / 6]), 2 * logs([2 / 6, 3 / 6, 1 / 6])
        loss = dist_loss(student, teacher, temperature=2, intra_weight=0)
        assert loss.item() == pytest.approx(4 * (1 - 0.5))

    def test_defaults_by_hand(self):
        # Each of two classes: teacher ranks them the other way round, and the samples too.
        student, teacher = logs([0.1, 0.9], [0.2, 0.8]), logs([0.9, 0.1], [0.8, 0.2])
        assert dist_loss(student, teacher).item() == pytest.approx(2 + 2)

    @pytest.mark.parametrize("options", OPTIONS)
    def test_value_and_gradients_match_numpy(self, pair, options):
        def reference(student, teacher):
            return make.dist(student, teacher, **options)

        loss = dist_loss(*pair, **options)
        actual = gradients(loss, *pair)
        assert loss.item() == pytest.approx(reference(*numpy(*pair)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(reference, *numpy(*pair), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-9, atol=1e-13)

    @pytest.mark.parametrize("temperature", [0.5, 1, 4])
    def test_matches_the_correlations_of_numpy(self, pair, temperature):
        p, q = (scipy.special.softmax(z / temperature, axis=1) for z in numpy(*pair))
        inter = 1 - np.mean([np.corrcoef(p[b], q[b])[0, 1] for b in range(6)])
        intra = 1 - np.mean([np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(5)])
        loss = dist_loss(*pair, temperature=temperature, inter_weight=3, intra_weight=5)
        expected = temperature**2 * (3 * inter + 5 * intra)
        assert loss.item() == pytest.approx(expected, rel=1e-11)

    @pytest.mark.parametrize("options", OPTIONS)
    def test_float32_is_close_to_float64(self, pair, options):
        singles = [z.detach().float().requires_grad_() for z in pair]
        exact = [z.double().detach().requires_grad_() for z in singles]
        loss, expected = (dist_loss(*z, **options) for z in (singles, exact))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())

    @pytest.mark.parametrize("temperature", [30.0, 1000.0])
    def test_high_temperature_costs_float32_few_digits(self, pair, temperature):
        # Probabilities differ in their third or fifth digit; p - mean(p) keeps what is left.
        singles = [z.detach().float().requires_grad_() for z in pair]
        exact = [z.double().detach().requires_grad_() for z in singles]
        loss, expected = (dist_loss(*z, temperature=temperature) for z in (singles, exact))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())

    def test_high_temperature_gives_the_correlation_of_the_scores(self, pair):
        student, teacher = numpy(*pair)
        expected = 1 - np.mean(
            [np.corrcoef(s, t)[0, 1] for s, t in zip(student, teacher, strict=True)]
        )
        loss = dist_loss(*pair, temperature=1e5, intra_weight=0)
        assert loss.item() / 1e10 == pytest.approx(expected, rel=1e-4)

    @given(scores, temperatures, weights, weights)
    def test_is_zero_when_equal(self, logits, temperature, inter, intra):
        student = logits.clone().requires_grad_()
        loss = dist_loss(
            student, logits, temperature=temperature, inter_weight=inter, intra_weight=intra
        )
        assert loss.item() == pytest.approx(0, abs=1e-10)
        np.testing.assert_allclose(gradients(loss, student)[0], 0, atol=1e-9)

    @given(scores, scores, temperatures, weights, weights)
    def test_lies_between_0_and_its_bound(self, s, t, temperature, inter, intra):
        loss = dist_loss(s, t, temperature=temperature, inter_weight=inter, intra_weight=intra)
        assert -1e-10 <= loss.item() <= 2 * temperature**2 * (inter + intra) + 1e-10

    @given(scores, scores)
    def test_student_and_teacher_may_be_swapped(self, s, t):
        assert dist_loss(s, t).item() == pytest.approx(dist_loss(t, s).item(), rel=1e-12)

    @given(
        scores,
        scores,
        temperatures,
        arrays(np.float64, (2, 6, 1), elements=st.floats(-50, 50)).map(torch.from_numpy),
    )
    def test_a_constant_added_to_all_classes_of_a_sample_changes_nothing(
        self, s, t, temperature, offsets
    ):
        shifted = dist_loss(s + offsets[0], t + offsets[1], temperature=temperature).item()
        plain = dist_loss(s, t, temperature=temperature).item()
        assert shifted == pytest.approx(plain, rel=1e-8, abs=1e-8)

    @given(scores, scores, temperatures)
    def test_scores_and_temperature_scale_together_up_to_its_square(self, s, t, temperature):
        scaled = dist_loss(s * temperature, t * temperature, temperature=temperature).item()
        plain = dist_loss(s, t).item()
        assert scaled == pytest.approx(temperature**2 * plain, rel=1e-8, abs=1e-8)

    @given(
        scores,
        scores,
        arrays(np.float64, (2, 6, 1), elements=st.floats(0.1, 1)).map(torch.from_numpy),
    )
    def test_inter_ignores_a_positive_affine_map_of_a_row_of_probabilities(self, s, t, scale):
        # The rows of a p + (1 - a) / C sum to 1 again; each has its own a.
        mapped = [
            (a * z.softmax(1) + (1 - a) / 5).log() for a, z in zip(scale, (s, t), strict=True)
        ]
        loss = dist_loss(*mapped, intra_weight=0).item()
        assert loss == pytest.approx(dist_loss(s, t, intra_weight=0).item(), rel=1e-8, abs=1e-8)

    @given(scores, scores, st.floats(0.1, 1), st.floats(0.1, 1))
    def test_intra_ignores_a_positive_affine_map_of_a_column_of_probabilities(self, s, t, a, b):
        # All samples mixed with the same distribution q: column c becomes a p[:, c] + (1 - a) q[c].
        q = torch.tensor([0.1, 0.3, 0.2, 0.35, 0.05], dtype=torch.float64)
        mapped = [(a * z.softmax(1) + (1 - a) * q).log() for a, z in ((a, s), (b, t))]
        loss = dist_loss(*mapped, inter_weight=0).item()
        # A column of tiny probabilities loses digits beside (1 - a) q.
        assert loss == pytest.approx(dist_loss(s, t, inter_weight=0).item(), rel=1e-4, abs=1e-4)

    @given(scores, scores, st.permutations(range(6)), st.permutations(range(5)))
    def test_order_of_samples_and_classes_is_irrelevant(self, s, t, samples, classes):
        shuffled = dist_loss(s[samples][:, classes], t[samples][:, classes]).item()
        assert shuffled == pytest.approx(dist_loss(s, t).item(), rel=1e-10, abs=1e-10)

    def test_order_of_samples_on_one_side_alone_is_not(self, pair):
        student, teacher = pair
        for options in ({"inter_weight": 0}, {"intra_weight": 0}):
            plain = dist_loss(student, teacher, **options).item()
            assert abs(dist_loss(student, teacher.roll(1, 0), **options).item() - plain) > 1e-3

    @pytest.mark.parametrize("dtype", HALVES)
    def test_rows_and_columns_without_spread_count_as_0_and_get_no_gradient(self, dtype):
        # A score that is the same for all classes gives rows, and columns, of 1/7.
        student = torch.full((6, 7), 3.0, dtype=dtype, requires_grad=True)
        teacher = torch.randn(6, 7).to(dtype).requires_grad_()
        for inputs in ((student, teacher), (teacher, student), (student, student)):
            loss = dist_loss(*inputs, inter_weight=3, intra_weight=5, temperature=2)
            assert loss.dtype == torch.float32
            assert loss.item() == 4 * (3 + 5)
            for gradient in gradients(loss, *inputs):
                np.testing.assert_array_equal(gradient, 0)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("batch", [2, 3, 7, 64])
    def test_duplicate_samples_have_no_spread_within_a_class(self, dtype, batch):
        # The mean of equal numbers need not be that number: its rounding is no spread.
        student, teacher = (z.to(dtype).expand(batch, 11) for z in torch.randn(2, 1, 11))
        student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
        intra = dist_loss(student, teacher, inter_weight=0)
        assert intra.item() == 1
        for gradient in gradients(intra, student, teacher):
            np.testing.assert_array_equal(gradient, 0)
        inter = dist_loss(student, teacher, intra_weight=0).item()
        one = dist_loss(student[:1], teacher[:1], intra_weight=0).item()
        assert inter == pytest.approx(one, rel=1e-6)

    def test_one_row_without_spread_leaves_the_others_alone(self, pair):
        student, teacher = (z.detach().clone() for z in pair)
        student[2] = 0.1
        student.requires_grad_()
        loss = dist_loss(student, teacher, intra_weight=0)
        rest = [0, 1, 3, 4, 5]
        others = dist_loss(student[rest], teacher[rest], intra_weight=0)
        assert loss.item() == pytest.approx((5 * others.item() + 1) / 6, rel=1e-12)
        (gradient,), (expected,) = gradients(loss, student), gradients(others, student)
        np.testing.assert_allclose(gradient, expected * 5 / 6, rtol=1e-12, atol=1e-16)
        np.testing.assert_array_equal(gradient[2], 0)

    def test_rounding_is_not_spread_and_what_exceeds_it_is(self):
        # Two samples that differ by one unit in the last place, or by a thousand.
        teacher = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        for steps, expected in ((1, 1.0), (1000, 0.0)):
            student = torch.tensor([[1.0, 0.0], [1.0 + steps * 2**-23, 0.0]], requires_grad=True)
            loss = dist_loss(student, teacher, inter_weight=0)
            assert loss.item() == pytest.approx(expected, abs=1e-3)
            assert np.isfinite(gradients(loss, student)[0]).all()

    def test_rounding_of_a_tiny_probability_is_not_spread(self):
        # The same sample up to an offset of its scores. In float32, log p = -1001 is known to
        # 6e-5, and so is p, relatively: 500 times less exact than a probability near 1.
        sample = torch.tensor([[-1000.1, 0.0, 0.3]])
        student = torch.cat([sample, sample + 0.1]).requires_grad_()
        first, second = student.log_softmax(dim=1)[:, 0].tolist()
        assert first != second
        teacher = torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
        loss = dist_loss(student, teacher, inter_weight=0)
        assert loss.item() == 1
        np.testing.assert_array_equal(gradients(loss, student)[0], 0)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("depth", [100.0, 1000.0])
    def test_the_spread_of_a_column_of_tiny_probabilities_counts(self, dtype, depth):
        # Class 0 has probabilities exp(-depth) (1, e⁴, e⁸) and exp(-depth) (1, e⁸, e⁴), whose
        # squares, or themselves, are below float32's range. Class 1 has 1, without spread.
        student = torch.tensor([[0, 0], [4, 0], [8, 0]]) - torch.tensor([depth, 0])
        teacher = student[[0, 2, 1]].to(dtype)
        student = student.to(dtype).requires_grad_()

        def reference(s, t):
            return 1 - make.pearson(np.exp(s), np.exp(t)) / 2

        columns = np.array([0, 4, 8]), np.array([0, 8, 4])
        loss = dist_loss(student, teacher, inter_weight=0)
        assert loss.item() == pytest.approx(reference(*columns), rel=1e-5)
        rounding = max(1e-4, 2 * torch.finfo(dtype).eps)
        expected = make.gradient(reference, *columns)
        np.testing.assert_allclose(gradients(loss, student)[0][:, 0], expected, rtol=rounding)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("temperature", [0.25, 1, 4])
    def test_value_and_gradients_are_finite_at_a_gap_of_1000(self, dtype, temperature):
        student = torch.tensor([[1000.0, 0, -3], [0, 0, 0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[0.0, 1000, 5], [-1000, 0, 1]], dtype=dtype, requires_grad=True)
        loss = dist_loss(student, teacher, temperature=temperature)
        assert loss.dtype == torch.float32
        assert np.isfinite(loss.item())
        assert all(np.isfinite(g).all() for g in gradients(loss, student, teacher))

    @pytest.mark.parametrize("dtype", HALVES)
    def test_gap_of_1000_is_exact(self, dtype):
        # Rows (1, 0) and (0, 1) on both sides, in the same order and in the other.
        student = torch.tensor([[1000.0, 0], [0, 1000]], dtype=dtype)
        assert dist_loss(student, student).item() == pytest.approx(0, abs=1e-6)
        assert dist_loss(student, -student).item() == pytest.approx(4, rel=1e-6)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_a_batch_of_one_compares_classes_only(self, dtype):
        student, teacher = (z.to(dtype).requires_grad_() for z in torch.randn(2, 1, 5))
        loss = dist_loss(student, teacher, intra_weight=0)
        p, q = (scipy.special.softmax(z[0]) for z in numpy(student, teacher))
        assert loss.item() == pytest.approx(1 - np.corrcoef(p, q)[0, 1], rel=1e-5)
        assert all(np.isfinite(g).all() for g in gradients(loss, student, teacher))

    def test_refuses_to_compare_samples_in_a_batch_of_one(self):
        with pytest.raises(
            ValueError, match="compares samples of a batch, got a batch of 1; use a larger batch or"
        ):
            dist_loss(torch.zeros(1, 3), torch.zeros(1, 3))

    @pytest.mark.parametrize("options", [{"inter_weight": 0}, {"intra_weight": 0}])
    def test_what_is_not_a_number_stays_visible(self, pair, options):
        student, teacher = (z.detach().clone() for z in pair)
        student[2, 3] = math.nan
        assert dist_loss(student, teacher, **options).isnan()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, dtype):
        halves = [z.detach().to(dtype) for z in pair]
        raised = dist_loss(*(z.float() for z in halves), temperature=3)
        assert dist_loss(*halves, temperature=3) == raised

    def test_autocast_changes_neither_value_nor_gradient(self, pair):
        student, teacher = (z.detach().float().requires_grad_() for z in pair)
        outside = dist_loss(student, teacher, temperature=4)
        with torch.autocast("cpu", torch.bfloat16):
            inside = dist_loss(student, teacher, temperature=4)
        assert inside == outside
        for ours, theirs in zip(
            gradients(inside, student, teacher), gradients(outside, student, teacher), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
    def test_refuses_a_temperature_that_is_not_positive(self, temperature):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
            dist_loss(torch.zeros(2, 2), torch.zeros(2, 2), temperature=temperature)

    @pytest.mark.parametrize("option", ["inter_weight", "intra_weight"])
    @pytest.mark.parametrize("value", [-1e-9, -1, math.nan])
    def test_refuses_a_negative_weight(self, option, value):
        with pytest.raises(ValueError, match=f"{option} must be at least 0, got {value}"):
            dist_loss(torch.zeros(2, 2), torch.zeros(2, 2), **{option: value})
