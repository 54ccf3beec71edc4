"""rsd_loss against NumPy, against cases by hand, and against its laws."""

import math
import re

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from anykd.losses import rsd_loss
from tests.golden import make

HALVES = [torch.float32, torch.bfloat16, torch.float16]
WEIGHTS = [0, 0.01, 0.5, 1.0]

# The sine keeps every column far from constant, where 1e-5 beside the deviation would count.
vectors = arrays(np.int64, (6, 4), elements=st.integers(-6, 6)).map(
    lambda x: torch.from_numpy(x + np.sin(np.arange(24) ** 2).reshape(6, 4))
)
weights = st.floats(0.0, 2.0)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


def columns(*values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype).T.contiguous()


def white(matrix: Tensor) -> Tensor:
    """Vectors with the same span, of mean 0, deviation 1 and no correlation."""
    centred = matrix - matrix.mean(dim=0)
    return torch.linalg.qr(centred).Q * len(matrix) ** 0.5


@pytest.fixture
def shapes_are_unchecked():
    """Outside the tests nothing checks shapes before the loss does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class TestRSDLoss:
    A, B = [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]

    @pytest.mark.parametrize(
        ("student", "teacher", "diagonal", "others"),
        [
            ([A, B], [A, B], 0, 0),
            ([A, B], [B, A], 1 + 1, 1 + 1),
            ([A, A], [A, B], 0 + 1, 1 + 0),
            ([A, A], [A, A], 0, 1 + 1),
            ([A, B], [[-x for x in A], B], 4, 0),
        ],
    )
    @pytest.mark.parametrize("weight", WEIGHTS)
    def test_two_uncorrelated_columns_by_hand(self, student, teacher, diagonal, others, weight):
        loss = rsd_loss(columns(*student), columns(*teacher), off_diagonal_weight=weight)
        # 1e-5 beside a deviation of 1 takes M_ij to (1 + 1e-5)^-2.
        assert loss.item() == pytest.approx(diagonal + weight * others, rel=5e-5, abs=1e-8)

    def test_default_weight_by_hand(self):
        loss = rsd_loss(columns(self.A, self.B), columns(self.B, self.A))
        assert loss.item() == pytest.approx(2 + 0.01 * 2, rel=5e-5)

    def test_correlation_of_a_half_by_hand(self):
        # Deviations (1, 0, -1) and (1, -1, 0): M = 1/2, so that the loss is 1/4.
        student, teacher = columns([4.0, 3.0, 2.0]), columns([8.0, 6.0, 7.0])
        assert rsd_loss(student, teacher).item() == pytest.approx(0.25, rel=5e-5)

    def test_epsilon_by_hand(self):
        # A deviation of 1e-5, with 1e-5 added, makes 1/2 of 1: M = 1/2.
        student, teacher = columns([1e-5, -1e-5]), columns([1.0, -1.0])
        assert rsd_loss(student, teacher).item() == pytest.approx(0.25, rel=5e-5)

    @pytest.mark.parametrize("weight", WEIGHTS)
    def test_value_and_gradients_match_numpy(self, pair, weight):
        def reference(student, teacher):
            return make.rsd(student, teacher, off_diagonal_weight=weight)

        loss = rsd_loss(*pair, off_diagonal_weight=weight)
        actual = gradients(loss, *pair)
        assert loss.item() == pytest.approx(reference(*numpy(*pair)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(reference, *numpy(*pair), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-9, atol=1e-13)

    @pytest.mark.parametrize("weight", WEIGHTS)
    def test_matches_the_correlations_of_numpy(self, pair, weight):
        student, teacher = numpy(*pair)
        correlations = np.corrcoef(teacher.T, student.T)[:5, 5:]
        factors = np.where(np.eye(5), 1, weight)
        expected = np.sum(factors * (correlations - np.eye(5)) ** 2)
        # np.corrcoef has no 1e-5, which beside deviations of about 3 changes the sixth digit.
        loss = rsd_loss(*pair, off_diagonal_weight=weight)
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("weight", WEIGHTS)
    def test_float32_is_close_to_float64(self, pair, weight):
        singles = [z.detach().float().requires_grad_() for z in pair]
        exact = [z.double().detach().requires_grad_() for z in singles]
        loss, expected = (rsd_loss(*z, off_diagonal_weight=weight) for z in (singles, exact))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())

    @given(vectors, weights)
    def test_is_zero_for_equal_vectors_without_correlation(self, matrix, weight):
        vectors = white(matrix)
        loss = rsd_loss(vectors, vectors, off_diagonal_weight=weight)
        assert loss.item() == pytest.approx(0, abs=1e-8)

    @given(vectors, weights)
    def test_equal_vectors_pay_only_for_correlation_among_themselves(self, matrix, weight):
        correlations = np.corrcoef(matrix.numpy().T)
        expected = weight * np.sum((correlations - np.eye(4)) ** 2)
        loss = rsd_loss(matrix, matrix, off_diagonal_weight=weight)
        assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)

    @given(vectors, vectors, weights)
    def test_lies_between_0_and_its_bound(self, s, t, weight):
        loss = rsd_loss(s, t, off_diagonal_weight=weight)
        assert 0 <= loss.item() <= 4 * 4 + weight * 4 * 3

    @given(vectors, vectors, weights)
    def test_student_and_teacher_may_be_swapped(self, s, t, weight):
        one, other = (rsd_loss(*z, off_diagonal_weight=weight).item() for z in ((s, t), (t, s)))
        assert one == pytest.approx(other, rel=1e-12)

    @given(
        vectors,
        vectors,
        arrays(np.float64, (2, 4), elements=st.floats(0.1, 100)).map(torch.from_numpy),
        arrays(np.float64, (2, 4), elements=st.floats(-1000, 1000)).map(torch.from_numpy),
    )
    def test_a_positive_affine_map_of_a_column_changes_nothing(self, s, t, scales, offsets):
        # Beside a large deviation 1e-5 is nothing; else the law holds up to 1e-5 / deviation.
        large = [2**20 * z for z in (s, t)]
        mapped = [z * a + b for z, a, b in zip(large, scales, offsets, strict=True)]
        assert rsd_loss(*mapped).item() == pytest.approx(rsd_loss(*large).item(), rel=1e-8)

    @given(vectors, vectors, st.permutations(range(6)), st.permutations(range(4)))
    def test_order_of_samples_and_of_features_is_irrelevant(self, s, t, samples, features):
        shuffled = rsd_loss(s[samples][:, features], t[samples][:, features]).item()
        assert shuffled == pytest.approx(rsd_loss(s, t).item(), rel=1e-10, abs=1e-12)

    def test_order_on_one_side_alone_is_not(self, pair):
        student, teacher = pair
        plain = rsd_loss(student, teacher).item()
        for dim in (0, 1):
            assert abs(rsd_loss(student, teacher.roll(1, dim)).item() - plain) > 1e-3

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("batch", [2, 3, 7, 64])
    @pytest.mark.parametrize("value", [0.0, 0.1, 1000.0])
    def test_a_constant_column_counts_as_0_and_gets_no_gradient(self, dtype, batch, value):
        # The mean of large equal numbers is not exact: its rounding must not pass for spread.
        student, teacher = (z.to(dtype) for z in torch.randn(2, batch, 3))
        student[:, 1] = value
        student.requires_grad_()
        teacher.requires_grad_()
        for inputs in ((student, teacher), (teacher, student)):
            loss = rsd_loss(*inputs, off_diagonal_weight=0.5)
            expected = make.rsd(*numpy(*inputs), off_diagonal_weight=0.5)
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(expected, rel=1e-5)
            for_constant, for_other = gradients(loss, student, teacher)
            assert np.isfinite(for_constant).all()
            assert np.isfinite(for_other).all()
            np.testing.assert_array_equal(for_constant[:, 1], 0)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("batch", [2, 3, 7])
    def test_duplicate_samples_correlate_with_nothing(self, dtype, batch):
        student, teacher = (
            z.to(dtype).repeat(batch, 1).requires_grad_() for z in torch.randn(2, 1, 5)
        )
        loss = rsd_loss(student, teacher)
        assert loss.item() == 5
        for gradient in gradients(loss, student, teacher):
            np.testing.assert_array_equal(gradient, 0)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_equal_features_give_one_matrix_element_many_times(self, dtype):
        student = torch.arange(4, dtype=dtype)[:, None].repeat(1, 3).requires_grad_()
        loss = rsd_loss(student, student.detach(), off_diagonal_weight=0.5)
        assert loss.item() == pytest.approx(0.5 * 6, rel=1e-4)
        assert np.isfinite(gradients(loss, student)[0]).all()

    @pytest.mark.parametrize("dtype", HALVES)
    def test_value_and_gradients_are_finite_for_vectors_of_1000(self, dtype):
        student = (1000 * torch.randn(6, 64)).to(dtype).requires_grad_()
        teacher = (-1000 * torch.randn(6, 64)).to(dtype).requires_grad_()
        loss = rsd_loss(student, teacher)
        assert loss.dtype == torch.float32
        assert np.isfinite(loss.item())
        assert all(np.isfinite(g).all() for g in gradients(loss, student, teacher))

    def test_a_large_common_offset_costs_no_digits(self):
        # Every number is exact in float32, also with 2**15 added.
        student, teacher = torch.arange(48.0).reshape(2, 8, 3).square().remainder(7) / 8
        plain = rsd_loss(student, teacher)
        assert rsd_loss(student + 2**15, teacher - 2**15).item() == pytest.approx(plain.item())

    def test_what_is_not_a_number_stays_visible(self, pair):
        for value in (math.nan, math.inf):
            student, teacher = (z.detach().clone() for z in pair)
            student[2, 3] = value
            assert rsd_loss(student, teacher).isnan()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, dtype):
        halves = [z.detach().to(dtype) for z in pair]
        assert rsd_loss(*halves) == rsd_loss(*(z.float() for z in halves))

    def test_autocast_changes_neither_value_nor_gradient(self, pair):
        student, teacher = (z.detach().float().requires_grad_() for z in pair)
        outside = rsd_loss(student, teacher)
        with torch.autocast("cpu", torch.bfloat16):
            inside = rsd_loss(student, teacher)
        assert inside == outside
        for ours, theirs in zip(
            gradients(inside, student, teacher), gradients(outside, student, teacher), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("batch", [0, 1])
    def test_refuses_a_batch_without_two_samples(self, batch):
        with pytest.raises(
            ValueError, match=f"correlates features over a batch, got a batch of {batch}; use a la"
        ):
            rsd_loss(torch.zeros(batch, 3), torch.zeros(batch, 3))

    @pytest.mark.parametrize("value", [-1e-9, -1, math.nan])
    def test_refuses_a_negative_weight(self, value):
        with pytest.raises(
            ValueError, match=f"off_diagonal_weight must be at least 0, got {value}"
        ):
            rsd_loss(torch.eye(3), torch.eye(3), off_diagonal_weight=value)

    @pytest.mark.usefixtures("shapes_are_unchecked")
    @pytest.mark.parametrize("shape", [(4, 1), (4, 5), (3, 3)])
    def test_refuses_vectors_of_different_width_or_number(self, shape):
        expected = f"student and teacher must have the same shape, got {shape} and (4, 3)"
        with pytest.raises(ValueError, match=re.escape(expected)):
            rsd_loss(torch.zeros(shape), torch.zeros(4, 3))
