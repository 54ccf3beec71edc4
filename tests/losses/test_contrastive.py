"""info_nce_loss against NumPy, against cases by hand, and against its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from anykd.losses import info_nce_loss
from tests.golden import make

HALVES = [torch.float32, torch.bfloat16, torch.float16]

# Coordinates of one sign, away from 0: no vector is so short that its direction is lost.
vectors = arrays(np.float64, (6, 5), elements=st.floats(0.1, 10)).map(
    lambda x: torch.from_numpy(x * np.where(np.arange(30).reshape(6, 5) % 3, 1, -1))
)
temperatures = st.floats(0.05, 2.0)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


class TestInfoNCELoss:
    @pytest.mark.parametrize("temperature", [0.07, 1, 3.0])
    def test_orthogonal_pairs_by_hand(self, temperature):
        # Similarity 1 with the positive and 0 with one negative: ln(1 + exp(-1/τ)).
        expected = math.log1p(math.exp(-1 / temperature))
        student, teacher = 3 * torch.eye(2).double(), 5 * torch.eye(2).double()
        actual = info_nce_loss(student, teacher, temperature=temperature)
        assert actual.item() == pytest.approx(expected)

    def test_student_asks_and_teacher_answers_by_hand(self):
        # Both students look like teacher 0. Rows of the similarity are (1, 0) and (1, 0), so that
        # the loss is the mean of ln(1 + 1/e) and ln(1 + e). Columns would give ln 2 twice.
        student, teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
        expected = (math.log1p(math.exp(-1)) + math.log1p(math.e)) / 2
        assert info_nce_loss(student, teacher, temperature=1).item() == pytest.approx(expected)

    @pytest.mark.parametrize("temperature", [0.07, 0.5, 2])
    def test_value_and_gradients_match_numpy(self, pair, temperature):
        def reference(student, teacher):
            return make.info_nce(student, teacher, temperature=temperature)

        loss = info_nce_loss(*pair, temperature=temperature)
        actual = gradients(loss, *pair)
        assert loss.item() == pytest.approx(reference(*numpy(*pair)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(reference, *numpy(*pair), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-9, atol=1e-13)

    def test_gradient_of_a_trained_temperature_matches_numpy(self, pair):
        temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        loss = info_nce_loss(*pair, temperature=temperature)
        expected = make.gradient(
            lambda s, t, tau: make.info_nce(s, t, temperature=tau),
            *numpy(*pair, temperature),
            wrt=2,
        )
        assert gradients(loss, temperature)[0] == pytest.approx(expected, rel=1e-10)

    def test_float32_is_close_to_float64(self, pair):
        singles = [z.detach().float().requires_grad_() for z in pair]
        exact = [z.double().detach().requires_grad_() for z in singles]
        loss, expected = (info_nce_loss(*z, temperature=0.07) for z in (singles, exact))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())

    @given(vectors, vectors, temperatures)
    def test_lies_between_0_and_its_bound(self, student, teacher, temperature):
        loss = info_nce_loss(student, teacher, temperature=temperature).item()
        assert 0 <= loss <= math.log(1 + 5 * math.exp(2 / temperature)) + 1e-9

    @given(
        vectors,
        vectors,
        temperatures,
        arrays(np.float64, (2, 6, 1), elements=st.floats(1e-3, 1e3)).map(torch.from_numpy),
    )
    def test_lengths_of_vectors_are_irrelevant(self, s, t, temperature, lengths):
        scaled = info_nce_loss(s * lengths[0], t * lengths[1], temperature=temperature).item()
        plain = info_nce_loss(s, t, temperature=temperature).item()
        assert scaled == pytest.approx(plain, rel=1e-9, abs=1e-12)

    @given(vectors, vectors, temperatures, st.integers(0, 100))
    def test_a_common_rotation_changes_nothing(self, s, t, temperature, seed):
        matrix = np.random.default_rng(seed).normal(size=(5, 5))
        rotation = torch.from_numpy(np.linalg.qr(matrix).Q)
        rotated = info_nce_loss(s @ rotation, t @ rotation, temperature=temperature).item()
        plain = info_nce_loss(s, t, temperature=temperature).item()
        assert rotated == pytest.approx(plain, rel=1e-9, abs=1e-12)

    @given(vectors, vectors, temperatures, st.permutations(range(6)))
    def test_order_of_samples_is_irrelevant(self, s, t, temperature, order):
        shuffled = info_nce_loss(s[order], t[order], temperature=temperature).item()
        plain = info_nce_loss(s, t, temperature=temperature).item()
        assert shuffled == pytest.approx(plain, rel=1e-9, abs=1e-12)

    def test_order_of_one_side_alone_is_not(self, pair):
        student, teacher = pair
        plain = info_nce_loss(student, teacher, temperature=0.5)
        assert info_nce_loss(student, teacher.roll(1, 0), temperature=0.5) != plain

    def test_a_batch_of_one_has_no_negatives_and_gives_0(self, pair):
        student, teacher = (z[:1] for z in pair)
        loss = info_nce_loss(student, teacher, temperature=0.07)
        assert loss.item() == 0
        np.testing.assert_array_equal(gradients(loss, student)[0], 0)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("temperature", [0.01, 1.0])
    def test_equal_vectors_give_the_logarithm_of_the_batch_size(self, dtype, temperature):
        student = torch.full((8, 5), 3.0, dtype=dtype, requires_grad=True)
        teacher = torch.full((8, 5), 0.5, dtype=dtype, requires_grad=True)
        loss = info_nce_loss(student, teacher, temperature=temperature)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(math.log(8), rel=1e-6)
        assert all(np.isfinite(g).all() for g in gradients(loss, student, teacher))

    @pytest.mark.parametrize("dtype", HALVES)
    def test_a_vector_of_length_0_has_similarity_0_with_every_other(self, dtype):
        student, teacher = torch.eye(3, 4, dtype=dtype), torch.eye(3, 4, dtype=dtype)
        student[0] = 0
        # Sample 0 cannot tell the teachers apart; the other two see similarities (1, 0, 0).
        expected = (math.log(3) + 2 * math.log1p(2 * math.exp(-1))) / 3
        loss = info_nce_loss(student, teacher, temperature=1.0)
        assert loss.item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("side", [0, 1])
    def test_a_vector_of_length_0_gets_no_gradient(self, dtype, side):
        pair = torch.eye(3, 4, dtype=dtype), torch.eye(3, 4, dtype=dtype)
        pair[side][0] = 0
        for vectors in pair:
            vectors.requires_grad_()
        found = gradients(info_nce_loss(*pair, temperature=0.07), *pair)
        assert all(np.isfinite(gradient).all() for gradient in found)
        np.testing.assert_array_equal(found[side][0], 0)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_long_vectors_and_a_small_temperature_stay_finite(self, dtype):
        student = (1000 * torch.randn(6, 64)).to(dtype).requires_grad_()
        teacher = (-1000 * torch.randn(6, 64)).to(dtype).requires_grad_()
        loss = info_nce_loss(student, teacher, temperature=0.01)
        assert np.isfinite(loss.item())
        assert all(np.isfinite(g).all() for g in gradients(loss, student, teacher))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, dtype):
        halves = [z.detach().to(dtype) for z in pair]
        raised = [z.float() for z in halves]
        assert info_nce_loss(*halves, temperature=0.07) == info_nce_loss(*raised, temperature=0.07)

    def test_autocast_changes_neither_value_nor_gradient(self, pair):
        student, teacher = (z.detach().float().requires_grad_() for z in pair)
        outside = info_nce_loss(student, teacher, temperature=0.07)
        with torch.autocast("cpu", torch.bfloat16):
            inside = info_nce_loss(student, teacher, temperature=0.07)
        assert inside == outside
        for ours, theirs in zip(
            gradients(inside, student, teacher), gradients(outside, student, teacher), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
    def test_refuses_a_temperature_that_is_not_positive(self, temperature):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
            info_nce_loss(torch.eye(2), torch.eye(2), temperature=temperature)
