"""hint_loss against NumPy, against cases by hand, and against its laws."""

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

from anykd.losses import hint_loss
from tests.golden import make

HALVES = [torch.float32, torch.bfloat16, torch.float16]

maps = arrays(np.float64, (2, 3, 4, 5), elements=st.floats(-100, 100)).map(torch.from_numpy)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


@pytest.fixture
def shapes_are_unchecked():
    """Outside the tests nothing checks shapes before the loss does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class TestHintLoss:
    def test_vectors_by_hand(self):
        # (1 + 4 + 9 + 0) / 4
        student = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        teacher = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
        assert hint_loss(student, teacher).item() == 3.5

    @pytest.mark.parametrize("shape", [(6, 5), (2, 4, 7), (2, 3, 4, 5), (1, 1)])
    def test_value_and_gradients_match_numpy_for_vectors_tokens_and_maps(self, shape):
        inputs = [z.requires_grad_() for z in torch.randn(2, *shape, dtype=torch.float64)]
        loss = hint_loss(*inputs)
        actual = gradients(loss, *inputs)
        assert loss.item() == pytest.approx(make.hint(*numpy(*inputs)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(make.hint, *numpy(*inputs), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-12)

    def test_float32_is_close_to_float64(self, pair):
        singles = [z.detach().float().requires_grad_() for z in pair]
        exact = [z.double().detach().requires_grad_() for z in singles]
        loss, expected = hint_loss(*singles), hint_loss(*exact)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    @given(maps)
    def test_is_zero_when_equal(self, features):
        student = features.clone().requires_grad_()
        loss = hint_loss(student, features)
        assert loss.item() == 0
        np.testing.assert_array_equal(gradients(loss, student)[0], 0)

    @given(maps, maps, st.floats(-100, 100), st.floats(-10, 10))
    def test_offset_is_irrelevant_and_scale_counts_squared(self, s, t, offset, scale):
        plain = hint_loss(s, t).item()
        assert hint_loss(s + offset, t + offset).item() == pytest.approx(plain, rel=1e-9, abs=1e-9)
        scaled = hint_loss(s * scale, t * scale).item()
        assert scaled == pytest.approx(scale**2 * plain, rel=1e-12, abs=1e-300)

    @given(maps, maps)
    def test_student_and_teacher_may_be_swapped(self, s, t):
        assert hint_loss(s, t).item() == hint_loss(t, s).item()

    @given(maps, maps, st.integers(0, 3), st.integers(0, 9))
    def test_order_of_elements_is_irrelevant(self, s, t, axis, shift):
        rolled = hint_loss(s.roll(shift, axis), t.roll(shift, axis)).item()
        assert rolled == pytest.approx(hint_loss(s, t).item(), rel=1e-12)

    @given(maps, maps)
    def test_a_batch_is_the_mean_of_batches_of_one(self, s, t):
        each = [hint_loss(x[None], y[None]).item() for x, y in zip(s, t, strict=True)]
        assert hint_loss(s, t).item() == pytest.approx(np.mean(each), rel=1e-12)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_difference_of_1000_is_exact(self, dtype):
        # In half precision the square, a million, would be infinite.
        student = torch.full((2, 3, 2, 2), 1000.0, dtype=dtype, requires_grad=True)
        teacher = torch.zeros(2, 3, 2, 2, dtype=dtype, requires_grad=True)
        loss = hint_loss(student, teacher)
        assert loss.dtype == torch.float32
        assert loss.item() == 1e6
        for gradient, sign in zip(gradients(loss, student, teacher), (1, -1), strict=True):
            np.testing.assert_allclose(gradient, sign * 2000 / 24, rtol=torch.finfo(dtype).eps)

    def test_what_is_not_a_number_stays_visible(self, pair):
        student, teacher = (z.detach().clone() for z in pair)
        student[2, 3] = math.nan
        assert hint_loss(student, teacher).isnan()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, dtype):
        halves = [z.detach().to(dtype) for z in pair]
        assert hint_loss(*halves) == hint_loss(*(z.float() for z in halves))

    @pytest.mark.parametrize("side", [0, 1])
    def test_one_side_alone_may_be_in_half_precision(self, pair, side):
        mixed = [z.detach().float() for z in pair]
        mixed[side] = mixed[side].bfloat16()
        loss = hint_loss(*mixed)
        assert loss.dtype == torch.float32
        assert loss == hint_loss(*(z.float() for z in mixed))

    def test_autocast_changes_neither_value_nor_gradient(self, pair):
        student, teacher = (z.detach().float().requires_grad_() for z in pair)
        outside = hint_loss(student, teacher)
        with torch.autocast("cpu", torch.bfloat16):
            inside = hint_loss(student, teacher)
        assert inside == outside
        for ours, theirs in zip(
            gradients(inside, student, teacher), gradients(outside, student, teacher), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.usefixtures("shapes_are_unchecked")
    @pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 4, 5), (3, 4, 4), (1, 3, 4, 4)])
    def test_refuses_different_shapes_also_where_they_would_broadcast(self, shape):
        expected = f"student and teacher must have the same shape, got {shape} and (2, 3, 4, 4)"
        with pytest.raises(ValueError, match=re.escape(expected)):
            hint_loss(torch.zeros(shape), torch.zeros(2, 3, 4, 4))
