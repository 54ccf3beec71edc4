"""The losses of relational distillation against NumPy, against cases by hand and their laws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anykd.losses import relations, rkd_angle_loss, rkd_distance_loss
from tests.golden import make

HALVES = [torch.float32, torch.bfloat16, torch.float16]
LOSSES = [
    pytest.param(rkd_distance_loss, make.rkd_distance, id="distance"),
    pytest.param(rkd_angle_loss, make.rkd_angle, id="angle"),
]
both = pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])

# On a grid: samples coincide or are well apart, in whatever unit they are given.
vectors = arrays(np.float64, (5, 3), elements=st.integers(-9, 9).map(float)).map(torch.from_numpy)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


def trained(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def assert_same(loss, student, teacher, expected, *, rel=1e-9):
    """Compare the value, where 0 may come out as the square of a rounding error."""
    assert loss(student, teacher).item() == pytest.approx(expected, rel=rel, abs=1e-14)


class TestByHand:
    def test_distances_with_coinciding_samples(self):
        student = torch.tensor([[0.0], [0.0], [1.0], [0.0]])
        teacher = torch.tensor([[0.0], [0.0], [1.0], [10.0]])
        # Pairs 01, 02, 12, 03, 13, 23 over the mean of the positive ones, 1 and 31/5.
        mean = 31 / 5
        near = 2 * (1 - 1 / mean) ** 2 / 2 + (1 - 9 / mean) ** 2 / 2
        far = 2 * (10 / mean - 1 / 2)
        assert_same(rkd_distance_loss, student, teacher, 2 * (near + far) / 16, rel=1e-6)

    def test_distances_are_euclidean(self):
        # 3, 4 and 5 against 1, 1 and 2, over their means 4 and 4/3.
        student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        teacher = torch.tensor([[1.0], [0.0], [2.0]])
        # 01: 3/4, 3/4; 02: 1, 3/4; 12: 5/4, 3/2
        expected = 2 * (1 / 16 + 1 / 16) / 2 / 9
        assert_same(rkd_distance_loss, student, teacher, expected, rel=1e-6)

    def test_angles_of_a_right_triangle_and_a_line(self):
        student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        teacher = torch.tensor([[0.0], [1.0], [2.0]])
        # At the corners, twice each: 0 and 1, √½ and -1, √½ and 1.
        root = np.sqrt(0.5)
        expected = 2 * (1 / 2 + (root + 1 - 1 / 2) + (1 - root) ** 2 / 2) / 27
        assert_same(rkd_angle_loss, student, teacher, expected, rel=1e-6)

    def test_angles_with_coinciding_samples(self):
        student, teacher = torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        # The corners 0 and 1 see one direction instead of two: of the teacher's four cosines of
        # length 1 three are missing at each. The corner 2 sees the same direction twice.
        assert_same(rkd_angle_loss, student, teacher, 2 * 3 * (1 / 2) / 27, rel=1e-6)

    @both
    def test_two_samples_have_one_relation_and_nothing_to_compare(self, loss):
        pair = trained(torch.tensor([[0.0, 1.0], [3.0, 2.0]]), torch.tensor([[7.0], [5.0]]))
        value = loss(*pair)
        assert value.item() == pytest.approx(0, abs=1e-30)
        for gradient in gradients(value, *pair):
            np.testing.assert_allclose(gradient, 0, atol=1e-15)


class TestAgainstNumPy:
    @pytest.mark.parametrize(("loss", "reference"), LOSSES)
    @pytest.mark.parametrize("width", [1, 3, 5])
    def test_value_and_gradients(self, pair, loss, reference, width):
        student, teacher = trained(pair[0], pair[1][:, :width])
        value = loss(student, teacher)
        actual = gradients(value, student, teacher)
        assert value.item() == pytest.approx(reference(*numpy(student, teacher)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(reference, *numpy(student, teacher), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-9, atol=1e-13)

    @pytest.mark.parametrize(("loss", "reference"), LOSSES)
    def test_value_and_gradients_of_coinciding_samples(self, pair, loss, reference):
        student, teacher = (z.detach().clone() for z in pair)
        student[4], teacher[0], teacher[2] = student[1], teacher[1], teacher[1]
        student, teacher = trained(student, teacher)
        value = loss(student, teacher)
        actual = gradients(value, student, teacher)
        assert value.item() == pytest.approx(reference(*numpy(student, teacher)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(reference, *numpy(student, teacher), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-9, atol=1e-13)

    @both
    @pytest.mark.parametrize("offset", [0.0, 100.0])
    @pytest.mark.parametrize("spread", [1.0, 1e-3])
    def test_float32_is_close_to_float64(self, loss, offset, spread):
        # Neighbours a thousandth apart, as two augmentations of one image may be.
        student, teacher = torch.randn(2, 12, 64)
        student[1::2] = student[::2] + spread * student[1::2]
        singles = trained(student + offset, teacher - offset)
        exact = trained(*(z.detach().double() for z in singles))
        value, expected = loss(*singles), loss(*exact)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        for ours, theirs in zip(
            gradients(value, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())


class TestLaws:
    @both
    @given(student=vectors, teacher=vectors)
    def test_lies_between_0_and_its_bound(self, loss, student, teacher):
        assert 0 <= loss(student, teacher).item() <= (1.5 if loss is rkd_angle_loss else 5)

    @both
    @given(student=vectors)
    def test_equal_vectors_give_0(self, loss, student):
        assert loss(student, student).item() == 0

    @both
    @given(student=vectors, teacher=vectors)
    def test_student_and_teacher_may_change_places(self, loss, student, teacher):
        assert_same(loss, teacher, student, loss(student, teacher).item())

    @both
    @given(
        student=vectors,
        teacher=vectors,
        seed=st.integers(0, 100),
        offset=st.floats(-100, 100),
        scale=st.floats(0.01, 100),
        side=st.integers(0, 1),
    )
    def test_either_side_may_be_rotated_moved_and_scaled(
        self, loss, student, teacher, seed, offset, scale, side
    ):
        matrix = np.random.default_rng(seed).normal(size=(3, 3))
        rotation = torch.from_numpy(np.linalg.qr(matrix).Q)
        moved = [student, teacher]
        # Row by row, so that samples that coincide still do.
        moved[side] = torch.stack([scale * (rotation @ row) + offset for row in moved[side]])
        assert_same(loss, moved[0], moved[1], loss(student, teacher).item(), rel=1e-7)

    @both
    @given(student=vectors, scale=st.sampled_from([-3.0, -1.0, 0.5, 7.0]))
    def test_a_similar_teacher_gives_0(self, loss, student, scale):
        assert_same(loss, student, scale * student + 5, 0)

    @both
    @given(student=vectors, teacher=vectors, order=st.permutations(range(5)))
    def test_order_of_samples_is_irrelevant(self, loss, student, teacher, order):
        assert_same(loss, student[order], teacher[order], loss(student, teacher).item())

    @both
    def test_order_of_one_side_alone_is_not(self, pair, loss):
        student, teacher = pair
        assert loss(student, teacher.roll(1, 0)).item() != pytest.approx(loss(*pair).item())

    @both
    def test_a_wider_copy_of_the_teacher_gives_0(self, pair, loss):
        student, _ = pair
        assert_same(loss, student, torch.cat([student, torch.full_like(student, 2.0)], dim=1), 0)

    @both
    def test_gradients_neither_move_nor_scale_a_side(self, pair, loss):
        for vectors, gradient in zip(pair, gradients(loss(*pair), *pair), strict=True):
            np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-14)
            assert np.sum(gradient * numpy(vectors)[0]) == pytest.approx(0, abs=1e-14)


@both
class TestStaysFinite:
    @pytest.mark.parametrize("dtype", HALVES)
    def test_some_samples_coincide(self, loss, dtype):
        student, teacher = torch.randn(2, 6, 5).to(dtype)
        student[1:3], teacher[2:5] = student[0], teacher[1]
        pair = trained(student, teacher)
        value = loss(*pair)
        assert value.dtype == torch.float32
        assert np.isfinite(value.item())
        assert all(np.isfinite(g).all() for g in gradients(value, *pair))

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("side", [0, 1])
    def test_all_samples_of_a_side_coincide(self, loss, dtype, side):
        inputs = [torch.randn(6, 5).to(dtype), torch.randn(6, 3).to(dtype)]
        inputs[side] = torch.full((6, 4), 0.7, dtype=dtype)
        pair = trained(*inputs)
        value = loss(*pair)
        found = gradients(value, *pair)
        assert np.isfinite(value.item())
        assert value.item() > 0
        np.testing.assert_array_equal(found[side], 0)
        assert np.isfinite(found[1 - side]).all()

    @pytest.mark.parametrize("dtype", HALVES)
    def test_all_samples_of_both_sides_coincide(self, loss, dtype):
        pair = trained(torch.full((6, 5), 3.0, dtype=dtype), torch.zeros(6, 2, dtype=dtype))
        value = loss(*pair)
        assert value.item() == 0
        with torch.autograd.set_detect_anomaly(True):  # nor a NaN that a later step happens to drop
            found = gradients(value, *pair)
        for gradient in found:
            np.testing.assert_array_equal(gradient, 0)

    @pytest.mark.parametrize(
        ("dtype", "scale"),
        [(torch.float32, 2.0**100), (torch.bfloat16, 2.0**100), (torch.float16, 2.0**12)],
    )
    @pytest.mark.parametrize("power", [1, -1])
    def test_huge_and_tiny_vectors_are_as_good_as_others(self, loss, dtype, scale, power):
        student, teacher = torch.randint(-7, 8, (2, 8, 5), dtype=dtype)
        plain, scaled = trained(student, teacher), trained(student * scale**power, teacher)
        expected, value = loss(*plain), loss(*scaled)
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        ours, theirs = gradients(value, *scaled), gradients(expected, *plain)
        assert all(np.isfinite(g).all() for g in ours)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)
        if dtype != torch.float16:  # its numbers end before the student's gradient
            np.testing.assert_allclose(ours[0] * scale**power, theirs[0], rtol=1e-6)


@both
class TestPrecisionAndErrors:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, loss, dtype):
        halves = [z.detach().to(dtype) for z in pair]
        assert loss(*halves) == loss(*(z.float() for z in halves))

    def test_autocast_changes_neither_value_nor_gradient(self, pair, loss):
        single = trained(*(z.float() for z in pair))
        outside = loss(*single)
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss(*single)
        assert inside == outside
        for ours, theirs in zip(
            gradients(inside, *single), gradients(outside, *single), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("batch", [0, 1])
    def test_refuses_fewer_than_two_samples(self, loss, batch):
        with pytest.raises(ValueError, match=f"at least two samples, got a batch of {batch}"):
            loss(torch.zeros(batch, 3), torch.zeros(batch, 3))


class LargestTensor(TorchDispatchMode):
    """Watches how many numbers the largest result of any operation has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


class TestBlocks:
    # Of 6 · 36 angles: one corner at a time, two, four and then two, all but one number.
    blocks = pytest.mark.parametrize("block", [1, 72, 144, 215])

    @both
    @blocks
    def test_blocks_equal_the_whole_in_value_and_gradient(self, pair, loss, block, monkeypatch):
        student, teacher = trained(pair[0], pair[1][:, :3])
        whole = loss(student, teacher)
        expected = gradients(whole, student, teacher)
        monkeypatch.setattr(relations, "_BLOCK", block)
        value = loss(student, teacher)
        assert value.item() == pytest.approx(whole.item(), rel=1e-13)
        for ours, theirs in zip(gradients(value, student, teacher), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-15)

    def test_blocks_under_autocast_equal_the_whole(self, pair, monkeypatch):
        single = trained(*(z.float() for z in pair))
        whole = rkd_angle_loss(*single)
        monkeypatch.setattr(relations, "_BLOCK", 72)
        with torch.autocast("cpu", torch.bfloat16):
            value = rkd_angle_loss(*single)
        assert value.item() == pytest.approx(whole.item(), rel=1e-7)
        for ours, theirs in zip(gradients(value, *single), gradients(whole, *single), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize(("block", "largest"), [(72, 72), (144, 144), (216, 216)])
    def test_no_tensor_is_larger_than_a_block(self, pair, block, largest, monkeypatch):
        monkeypatch.setattr(relations, "_BLOCK", block)
        with LargestTensor() as seen:
            torch.autograd.grad(rkd_angle_loss(*pair), pair)
        assert seen.numbers == largest

    @both
    def test_no_call_of_cdist_has_more_differences_than_a_block(self, pair, loss, monkeypatch):
        # On a GPU its backward pass holds them all.
        differences, cdist = [], torch.cdist

        def watched(rows: Tensor, vectors: Tensor, **options) -> Tensor:
            differences.append(rows.numel() * len(vectors))
            return cdist(rows, vectors, **options)

        monkeypatch.setattr(torch, "cdist", watched)
        monkeypatch.setattr(relations, "_BLOCK", 72)
        loss(*pair)
        assert differences == 6 * [2 * 6 * 5]

    def test_the_backward_pass_is_given_no_angles(self, pair, monkeypatch):
        def kept_numbers() -> int:
            kept: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                kept[tensor.data_ptr()] = tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = rkd_angle_loss(*pair)
            assert loss.requires_grad
            return max(kept.values())

        assert kept_numbers() == 216
        monkeypatch.setattr(relations, "_BLOCK", 72)
        assert kept_numbers() == 36
