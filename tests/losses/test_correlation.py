"""correlation_loss against NumPy, against cases by hand, and against its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from anykd.losses import correlation_loss
from tests.golden import make

HALVES = [torch.float32, torch.bfloat16, torch.float16]
both = pytest.mark.parametrize("variant", ["consecutive", "matrix"])

# On a grid, so that a vector of length 0 is exactly that in whatever unit it is given.
vectors = arrays(np.float64, (5, 3), elements=st.integers(-9, 9).map(float)).map(torch.from_numpy)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


def trained(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def assert_gradients_close(actual, expected, *, rtol, atol=0.0):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


class TestConsecutive:
    def test_three_samples_by_hand(self):
        # Sizes of the errors: (1, 2), (3, 4), (5, 6). Neighbours: 3 + 8 and 15 + 24, their mean.
        teacher = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
        student = teacher + torch.tensor([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]])
        assert correlation_loss(student, teacher).item() == 25

    def test_is_the_default(self, pair):
        assert correlation_loss(*pair) == correlation_loss(*pair, variant="consecutive")

    def test_depends_on_the_order_of_samples(self):
        # Sizes 1, 2, 3: 2 + 6, but 3 + 6 in the order 1, 3, 2.
        student, teacher = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
        assert correlation_loss(student, teacher).item() == 4
        assert correlation_loss(student[[0, 2, 1]], teacher).item() == 4.5

    def test_every_other_sample_may_be_wrong(self, pair):
        student, teacher = trained(*pair)
        with torch.no_grad():
            student[::2] = teacher[::2]
        assert correlation_loss(student, teacher).item() == 0

    @given(student=vectors, teacher=vectors)
    def test_a_reversed_batch_has_the_same_neighbours(self, student, teacher):
        expected = correlation_loss(student, teacher).item()
        actual = correlation_loss(student.flip(0), teacher.flip(0)).item()
        assert actual == pytest.approx(expected, rel=1e-12)

    @given(student=vectors, teacher=vectors, scale=st.floats(-100, 100), offset=st.floats(-9, 9))
    def test_grows_with_the_square_and_does_not_see_a_common_offset(
        self, student, teacher, scale, offset
    ):
        expected = scale**2 * correlation_loss(student, teacher).item()
        actual = correlation_loss(scale * student + offset, scale * teacher + offset).item()
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-9)

    def test_coordinates_without_an_error_get_no_gradient(self):
        student = torch.tensor([[1.0, 5.0], [2.0, 3.0]], requires_grad=True)
        teacher = torch.tensor([[0.0, 5.0], [5.0, 1.0]], requires_grad=True)
        # Errors (1, 0) and (-3, 2): the gradient of one is the size of the other, with its sign.
        student_gradient, teacher_gradient = gradients(
            correlation_loss(student, teacher), student, teacher
        )
        np.testing.assert_array_equal(student_gradient, [[3, 0], [-1, 0]])
        np.testing.assert_array_equal(teacher_gradient, [[-3, 0], [1, 0]])

    def test_refuses_different_widths(self):
        with pytest.raises(ValueError, match="widths 3 and 1; project them to one width or"):
            correlation_loss(torch.zeros(2, 3), torch.zeros(2, 1))


class TestMatrix:
    def test_two_samples_by_hand(self):
        # Of cosine 1 and -1; twice, and the two samples themselves have cosine 1 on both sides.
        student, teacher = torch.tensor([[2.0], [5.0]]), torch.tensor([[3.0, 4.0], [-6.0, -8.0]])
        kernels = (1 + 0.8 + 0.32) * math.exp(-0.8), (1 - 0.8 + 0.32) * math.exp(-0.8)
        expected = 2 / 4 * (kernels[0] - kernels[1]) ** 2
        actual = correlation_loss(student, teacher, variant="matrix").item()
        assert actual == pytest.approx(expected, rel=1e-6)

    def test_is_close_to_the_gaussian_kernel_of_nearly_orthogonal_vectors(self):
        # The Taylor series leaves out (0.8 c)³ / 6 of a cosine c, here below 1e-5.
        student, teacher = (np.eye(6) + 0.02 * np.random.default_rng(0).random((2, 6, 6))).copy()
        kernels = []
        for x in (student, teacher):
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            squares = np.square(unit[:, None] - unit[None]).sum(axis=2)
            kernels.append(np.exp(-0.4 * squares))
        expected = np.mean((kernels[0] - kernels[1]) ** 2)
        pair = torch.from_numpy(student), torch.from_numpy(teacher)
        actual = correlation_loss(*pair, variant="matrix").item()
        assert actual == pytest.approx(expected, rel=5e-3)

    def test_a_vector_of_length_0_has_cosine_0_and_gets_no_gradient(self):
        student, teacher = trained(torch.zeros(2, 3), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        loss = correlation_loss(student, teacher, variant="matrix")
        # Cosine 0 even with itself, where the teacher has 1: on the diagonal of the matrix.
        expected = 2 / 4 * (0.8 + 0.32) ** 2 * math.exp(-1.6)
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        np.testing.assert_array_equal(gradients(loss, student)[0], 0)

    @given(student=vectors, teacher=vectors, order=st.permutations(range(5)))
    def test_order_of_samples_is_irrelevant(self, student, teacher, order):
        expected = correlation_loss(student, teacher, variant="matrix").item()
        actual = correlation_loss(student[order], teacher[order], variant="matrix").item()
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-15)

    def test_order_of_one_side_alone_is_not(self, pair):
        student, teacher = pair
        moved = correlation_loss(student, teacher.roll(1, 0), variant="matrix").item()
        assert moved != pytest.approx(correlation_loss(*pair, variant="matrix").item())

    @given(
        student=vectors,
        teacher=vectors,
        seed=st.integers(0, 100),
        lengths=arrays(np.float64, (5, 1), elements=st.floats(1e-3, 1e3)).map(torch.from_numpy),
        side=st.integers(0, 1),
    )
    def test_either_side_may_be_rotated_and_each_vector_has_any_length(
        self, student, teacher, seed, lengths, side
    ):
        matrix = np.random.default_rng(seed).normal(size=(3, 3))
        moved = [student, teacher]
        moved[side] = lengths * moved[side] @ torch.from_numpy(np.linalg.qr(matrix).Q)
        expected = correlation_loss(student, teacher, variant="matrix").item()
        actual = correlation_loss(*moved, variant="matrix").item()
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-15)

    @given(student=vectors, teacher=vectors)
    def test_lies_below_its_bound(self, student, teacher):
        assert correlation_loss(student, teacher, variant="matrix").item() < 0.52

    @pytest.mark.parametrize("width", [1, 3])
    def test_widths_may_differ(self, pair, width):
        def reference(student, teacher):
            return make.correlation(student, teacher, variant="matrix")

        student, teacher = trained(pair[0], pair[1][:, :width])
        loss = correlation_loss(student, teacher, variant="matrix")
        inputs = numpy(student, teacher)
        assert loss.item() == pytest.approx(reference(*inputs), rel=1e-12)
        expected = [make.gradient(reference, *inputs, wrt=wrt) for wrt in (0, 1)]
        found = gradients(loss, student, teacher)
        assert_gradients_close(found, expected, rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize("power", [1, -1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_huge_and_tiny_vectors_are_as_good_as_others(self, dtype, power):
        student, teacher = torch.randn(2, 6, 5).to(dtype)
        scale = 2.0 ** (100 * power)
        plain, scaled = trained(student, teacher), trained(student * scale, teacher)
        expected = correlation_loss(*plain, variant="matrix")
        value = correlation_loss(*scaled, variant="matrix")
        assert value == expected
        found = gradients(value, *scaled)
        assert_gradients_close([found[0] * scale, found[1]], gradients(expected, *plain), rtol=0)


@both
class TestBoth:
    def test_value_and_gradients_match_numpy(self, pair, variant):
        def reference(student, teacher):
            return make.correlation(student, teacher, variant=variant)

        loss = correlation_loss(*pair, variant=variant)
        assert loss.item() == pytest.approx(reference(*numpy(*pair)), rel=1e-12)
        expected = [make.gradient(reference, *numpy(*pair), wrt=wrt) for wrt in (0, 1)]
        assert_gradients_close(gradients(loss, *pair), expected, rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize("offset", [0.0, 100.0])
    def test_float32_is_close_to_float64(self, variant, offset):
        singles = trained(*(torch.randn(2, 8, 64) + offset))
        exact = trained(*(z.double() for z in singles))
        loss, expected = (correlation_loss(*z, variant=variant) for z in (singles, exact))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        wanted = gradients(expected, *exact)
        atol = 1e-6 * np.abs(wanted).max()
        assert_gradients_close(gradients(loss, *singles), wanted, rtol=1e-6, atol=atol)

    @given(student=vectors, teacher=vectors)
    def test_is_at_least_0_and_0_at_equality(self, variant, student, teacher):
        assert correlation_loss(student, teacher, variant=variant).item() >= 0
        assert correlation_loss(student, student, variant=variant).item() == 0

    @given(student=vectors, teacher=vectors)
    def test_student_and_teacher_may_change_places(self, variant, student, teacher):
        expected = correlation_loss(student, teacher, variant=variant)
        assert correlation_loss(teacher, student, variant=variant) == expected

    @pytest.mark.parametrize("dtype", HALVES)
    def test_coinciding_samples_stay_finite(self, variant, dtype):
        student, teacher = torch.randn(2, 6, 5).to(dtype)
        student[1:3], teacher[2:5] = student[0], teacher[1]
        pair = trained(student, teacher)
        loss = correlation_loss(*pair, variant=variant)
        assert loss.dtype == torch.float32
        assert np.isfinite(loss.item())
        assert all(np.isfinite(g).all() for g in gradients(loss, *pair))

    @pytest.mark.parametrize("dtype", HALVES)
    def test_samples_that_are_all_equal_stay_finite(self, variant, dtype):
        pair = trained(torch.full((6, 5), 3.0, dtype=dtype), torch.zeros(6, 5, dtype=dtype))
        loss = correlation_loss(*pair, variant=variant)
        assert np.isfinite(loss.item())
        assert all(np.isfinite(g).all() for g in gradients(loss, *pair))

    @pytest.mark.parametrize(
        ("dtype", "size"), [(torch.float32, 1e15), (torch.bfloat16, 1e15), (torch.float16, 65504)]
    )
    def test_huge_vectors_stay_finite(self, variant, dtype, size):
        signs = torch.randn(2, 6, 5).sign()
        pair = trained(*(size * signs).to(dtype))
        loss = correlation_loss(*pair, variant=variant)
        assert np.isfinite(loss.item())
        if dtype != torch.float16 or variant == "matrix":  # the gradient is as long as the errors
            assert all(np.isfinite(g).all() for g in gradients(loss, *pair))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, variant, dtype):
        halves = [z.detach().to(dtype) for z in pair]
        raised = [z.float() for z in halves]
        expected = correlation_loss(*raised, variant=variant)
        assert correlation_loss(*halves, variant=variant) == expected

    def test_autocast_changes_neither_value_nor_gradient(self, pair, variant):
        single = trained(*(z.float() for z in pair))
        outside = correlation_loss(*single, variant=variant)
        with torch.autocast("cpu", torch.bfloat16):
            inside = correlation_loss(*single, variant=variant)
        assert inside == outside
        assert_gradients_close(gradients(inside, *single), gradients(outside, *single), rtol=0)

    @pytest.mark.parametrize("batch", [0, 1])
    def test_refuses_fewer_than_two_samples(self, variant, batch):
        with pytest.raises(ValueError, match=f"at least two samples, got a batch of {batch}"):
            correlation_loss(torch.zeros(batch, 3), torch.zeros(batch, 3), variant=variant)


def test_refuses_an_unknown_variant():
    with pytest.raises(ValueError, match="one of consecutive, matrix, got 'neighbours'"):
        correlation_loss(torch.zeros(2, 3), torch.zeros(2, 3), variant="neighbours")
