"""dkd_loss against NumPy and SciPy, against cases by hand, and against its laws."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from anykd.losses import dkd_loss, kd_loss
from tests.golden import make

LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
FIRST = torch.tensor([0])
HALVES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = [
    {},
    {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    {"alpha": 0.3, "beta": 0.0, "temperature": 0.5},
    {"alpha": 0, "beta": 1.5, "temperature": 2},
]

scores = arrays(np.float64, (6, 5), elements=st.floats(-30, 30)).map(torch.from_numpy)
temperatures = st.floats(0.5, 8.0)
weights = st.floats(0.0, 8.0)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


class TestDKDLoss:
    # p_t = (1/2, 3/8, 1/8), p_s = (1/3, 1/3, 1/3), class 0 the target:
    # b_t = (1/2, 1/2), b_s = (1/3, 2/3), q_t = (3/4, 1/4), q_s = (1/2, 1/2).
    TARGET_PART = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    OTHERS_PART = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)

    @pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (0, 1), (0.5, 3), (2, 0.25)])
    def test_both_parts_by_hand(self, alpha, beta):
        student, teacher = torch.zeros(1, 3), torch.tensor([[4.0, 3.0, 1.0]]).log()
        expected = alpha * self.TARGET_PART + beta * self.OTHERS_PART
        actual = dkd_loss(student, teacher, FIRST, alpha=alpha, beta=beta)
        assert actual.item() == pytest.approx(expected)

    def test_defaults_by_hand(self):
        student, teacher = torch.zeros(1, 3), torch.tensor([[4.0, 3.0, 1.0]]).log()
        expected = self.TARGET_PART + 2 * self.OTHERS_PART
        assert dkd_loss(student, teacher, FIRST).item() == pytest.approx(expected)

    def test_temperature_by_hand(self):
        # Scores twice as large at T = 2 give the distributions above, and T² = 4.
        student, teacher = torch.zeros(1, 3), 2 * torch.tensor([[4.0, 3.0, 1.0]]).log()
        expected = 4 * (self.TARGET_PART + 2 * self.OTHERS_PART)
        actual = dkd_loss(student, teacher, FIRST, temperature=2)
        assert actual.item() == pytest.approx(expected)

    def test_direction_by_hand(self):
        # The other way round: KL((1/3, 2/3) || (1/2, 1/2)) + 2 KL((1/2, 1/2) || (3/4, 1/4))
        student, teacher = torch.tensor([[4.0, 3.0, 1.0]]).log(), torch.zeros(1, 3)
        target = math.log(2 / 3) / 3 + 2 * math.log(4 / 3) / 3
        others = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
        expected = target + 2 * others
        assert dkd_loss(student, teacher, FIRST).item() == pytest.approx(expected)

    @pytest.mark.parametrize("options", OPTIONS)
    def test_value_and_gradients_match_numpy(self, pair, options):
        def reference(student, teacher):
            return make.dkd(student, teacher, LABELS.tolist(), **options)

        student, teacher = pair
        loss = dkd_loss(student, teacher, LABELS, **options)
        actual = gradients(loss, *pair)
        assert loss.item() == pytest.approx(reference(*numpy(*pair)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(reference, *numpy(*pair), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-9, atol=1e-13)

    @pytest.mark.parametrize("temperature", [0.5, 1, 4])
    def test_matches_scipy(self, pair, temperature):
        student, teacher = pair
        p_s, p_t = (scipy.special.softmax(z / temperature, axis=1) for z in numpy(*pair))
        each = []
        for s, t, c in zip(p_s, p_t, LABELS.tolist(), strict=True):
            # SciPy normalises what it is given, so the others need no division by 1 - p_c.
            target = scipy.stats.entropy([t[c], 1 - t[c]], [s[c], 1 - s[c]])
            each.append(3 * target + 5 * scipy.stats.entropy(np.delete(t, c), np.delete(s, c)))
        loss = dkd_loss(student, teacher, LABELS, alpha=3, beta=5, temperature=temperature)
        assert loss.item() == pytest.approx(temperature**2 * np.mean(each), rel=1e-11)

    @pytest.mark.parametrize("temperature", [0.5, 1, 4])
    def test_gradients_of_the_parts_are_differences_of_distributions(self, pair, temperature):
        student, teacher = pair
        p_s, p_t = (scipy.special.softmax(z / temperature, axis=1) for z in numpy(*pair))
        target = F.one_hot(LABELS, 5).numpy().astype(bool)
        q_s, q_t = (p * ~target / (p * ~target).sum(axis=1, keepdims=True) for p in (p_s, p_t))
        # d KL(b_t || b_s) / dz_c = p_s[c] - p_t[c], spread over the others as q_s with sign -.
        excess = (p_s - p_t)[target][:, None]
        for alpha, expected in ((1, excess * (target - q_s)), (0, q_s - q_t)):
            options = {"alpha": alpha, "beta": 1 - alpha, "temperature": temperature}
            loss = dkd_loss(student, teacher, LABELS, **options)
            (actual,) = gradients(loss, student)
            np.testing.assert_allclose(actual, temperature * expected / 6, rtol=1e-9, atol=1e-14)

    @pytest.mark.parametrize("options", OPTIONS)
    def test_float32_is_close_to_float64(self, pair, options):
        singles = [z.detach().float().requires_grad_() for z in pair]
        exact = [z.double().detach().requires_grad_() for z in singles]
        loss, expected = (dkd_loss(s, t, LABELS, **options) for s, t in (singles, exact))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())

    @given(scores, scores, temperatures)
    def test_is_kd_when_the_others_weigh_what_the_teacher_gives_them(self, s, t, temperature):
        # KL(p_t || p_s) = KL(b_t || b_s) + (1 - p_t[c]) KL(q_t || q_s), sample by sample.
        others = 1 - (t / temperature).softmax(dim=1).gather(1, LABELS[:, None])[:, 0]
        for row, beta in enumerate(others.clamp(min=0).tolist()):
            one = slice(row, row + 1)
            dkd = dkd_loss(s[one], t[one], LABELS[one], beta=beta, temperature=temperature)
            kd = kd_loss(s[one], t[one], temperature=temperature)
            assert dkd.item() == pytest.approx(kd.item(), rel=1e-9, abs=1e-9)

    @given(scores, temperatures, weights, weights)
    def test_is_zero_when_equal(self, logits, temperature, alpha, beta):
        student = logits.clone().requires_grad_()
        loss = dkd_loss(student, logits, LABELS, alpha=alpha, beta=beta, temperature=temperature)
        assert loss.item() == pytest.approx(0, abs=1e-11)
        np.testing.assert_allclose(gradients(loss, student)[0], 0, atol=1e-12)

    @given(scores, scores, temperatures, weights, weights)
    def test_is_never_negative(self, student, teacher, temperature, alpha, beta):
        loss = dkd_loss(student, teacher, LABELS, alpha=alpha, beta=beta, temperature=temperature)
        assert loss.item() >= -1e-11

    @given(scores, scores, temperatures, st.floats(-50, 50), st.floats(-50, 50))
    def test_a_constant_added_to_all_classes_changes_nothing(self, s, t, temperature, a, b):
        loss, shifted = (
            dkd_loss(*z, LABELS, temperature=temperature).item() for z in ((s, t), (s + a, t + b))
        )
        assert shifted == pytest.approx(loss, rel=1e-9, abs=1e-9)

    def test_a_large_common_offset_costs_no_digits(self):
        # Every number is exact in float32, also with 2**15 added.
        student = torch.tensor([[0.5, -1.25, 2.0], [3.0, 0.25, -0.75]])
        teacher = torch.tensor([[1.5, 0.0, -2.5], [-1.0, 2.25, 0.5]])
        labels = torch.tensor([0, 2])
        plain = dkd_loss(student, teacher, labels)
        assert dkd_loss(student + 2**15, teacher - 2**15, labels) == plain

    @given(scores, scores, temperatures, st.floats(-40, 40))
    def test_the_score_of_the_target_is_nothing_to_the_part_of_the_others(
        self, s, t, temperature, a
    ):
        moved = s + a * F.one_hot(LABELS, 5)
        loss, same = (
            dkd_loss(z, t, LABELS, alpha=0, temperature=temperature).item() for z in (s, moved)
        )
        assert same == pytest.approx(loss, rel=1e-12, abs=1e-12)

    @given(scores, scores, temperatures)
    def test_scores_and_temperature_scale_together_up_to_its_square(self, s, t, temperature):
        scaled = dkd_loss(s * temperature, t * temperature, LABELS, temperature=temperature).item()
        plain = dkd_loss(s, t, LABELS).item()
        assert scaled == pytest.approx(temperature**2 * plain, rel=1e-9, abs=1e-9)

    @given(scores, scores, st.permutations(range(6)), st.permutations(range(5)))
    def test_order_of_samples_and_classes_is_irrelevant(self, s, t, samples, classes):
        one_hot = F.one_hot(LABELS, 5).double()
        s2, t2, labels = (z[samples][:, classes] for z in (s, t, one_hot))
        shuffled = dkd_loss(s2, t2, labels).item()
        assert shuffled == pytest.approx(dkd_loss(s, t, LABELS).item(), rel=1e-9, abs=1e-11)

    @given(scores, scores, st.floats(0.0, 0.49))
    def test_of_mixed_and_smoothed_labels_the_most_probable_class_counts(self, s, t, share):
        one_hot = F.one_hot(LABELS, 5).double()
        mixed = (1 - share) * one_hot + share * one_hot.roll(1, dims=1)
        smoothed = (1 - share) * one_hot + share / 5
        expected = dkd_loss(s, t, LABELS).item()
        for labels in (one_hot, mixed, smoothed, one_hot.half(), LABELS.int()):
            assert dkd_loss(s, t, labels).item() == expected

    def test_is_the_mean_over_samples(self, pair):
        student, teacher = pair
        each = [
            dkd_loss(s[None], t[None], label[None]).item()
            for s, t, label in zip(student, teacher, LABELS, strict=True)
        ]
        assert dkd_loss(student, teacher, LABELS).item() == pytest.approx(np.mean(each), rel=1e-12)

    @pytest.mark.parametrize("gap", [-90.0, -25.0, 17.0, 25.0, 90.0])
    def test_target_part_does_not_cancel_where_the_student_is_sure(self, gap):
        # Two classes: p_s = sigmoid(gap), the teacher undecided. In float32, 1 - p_s is 0 from 17.
        student = torch.tensor([[gap, 0.0]], requires_grad=True)
        with localcontext() as context:
            context.prec = 60
            p = 1 / (1 + (-Decimal(gap)).exp())
            expected = -(Decimal(4) * p * (1 - p)).ln() / 2
        loss = dkd_loss(student, torch.zeros(1, 2), FIRST)
        assert loss.item() == pytest.approx(float(expected), rel=1e-6)
        slope = float(p) - 0.5
        np.testing.assert_allclose(gradients(loss, student)[0], [[slope, -slope]], rtol=1e-6)

    @pytest.mark.parametrize("gap", [-25.0, 17.0, 25.0])
    def test_target_part_does_not_cancel_where_the_teacher_is_sure(self, gap):
        # The student is far surer, so that the teacher's small probability weighs 1e9.
        student = torch.tensor([[math.copysign(1e9, gap), 0.0]])
        teacher = torch.tensor([[gap, 0.0]], requires_grad=True)
        with localcontext() as context:
            context.prec = 60
            unlikely = 1 / (1 + Decimal(abs(gap)).exp())
            entropy = -unlikely * unlikely.ln() - (1 - unlikely) * (1 - unlikely).ln()
            expected = unlikely * Decimal(10**9) - entropy
        loss = dkd_loss(student, teacher, FIRST)
        assert loss.item() == pytest.approx(float(expected), rel=1e-5)
        assert np.isfinite(gradients(loss, teacher)[0]).all()

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("gap", [0.0, 100.0, 1000.0])
    def test_others_are_told_apart_however_sure_the_target_is(self, dtype, gap):
        # p of the others underflows; among themselves they are (3/4, 1/4) and (1/2, 1/2).
        student = torch.tensor([[gap, 0, 0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[gap, math.log(3), 0]], dtype=dtype, requires_grad=True)
        q = 1 / (1 + math.exp(-teacher[0, 1].item()))
        expected = q * math.log(2 * q) + (1 - q) * math.log(2 * (1 - q))
        loss = dkd_loss(student, teacher, FIRST, alpha=0, beta=1)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        for_student, for_teacher = gradients(loss, student, teacher)
        rounding = 4 * torch.finfo(dtype).eps
        np.testing.assert_allclose(for_student, [[0, 0.5 - q, q - 0.5]], rtol=rounding)
        slope = q * (1 - q) * math.log(q / (1 - q))
        np.testing.assert_allclose(for_teacher, [[0, slope, -slope]], rtol=rounding)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_gap_of_1000_is_exact(self, dtype):
        # b_t = (0, 1), b_s = (1, exp(-1000)): KL = 1000. q_t = (1, 0), q_s = (0, 1): KL = 1000.
        student = torch.tensor([[1000.0, -1000, 0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[-1000.0, 0, -1000]], dtype=dtype)
        for options, value, gradient in (
            ({"alpha": 1, "beta": 0}, 1000, [[1, 0, -1]]),
            ({"alpha": 0, "beta": 1}, 1000, [[0, -1, 1]]),
            ({"alpha": 1, "beta": 2}, 3000, [[1, -2, 1]]),
        ):
            loss = dkd_loss(student, teacher, FIRST, **options)
            assert loss.item() == value
            np.testing.assert_array_equal(gradients(loss, student)[0], gradient)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("temperature", [0.25, 1, 4])
    def test_value_and_gradients_are_finite_at_a_gap_of_1000(self, dtype, temperature):
        student = torch.tensor([[1000.0, 0, -3], [0, 0, 0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[0.0, 1000, 5], [-1000, 0, 1]], dtype=dtype, requires_grad=True)
        for labels in (torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([2, 2])):
            loss = dkd_loss(student, teacher, labels, temperature=temperature)
            assert loss.dtype == torch.float32
            assert np.isfinite(loss.item())
            assert all(np.isfinite(g).all() for g in gradients(loss, student, teacher))

    @pytest.mark.parametrize("dtype", HALVES)
    def test_equal_classes_and_equal_samples_give_0(self, dtype):
        student = torch.full((4, 5), 7.0, dtype=dtype, requires_grad=True)
        teacher = torch.full((4, 5), -2.0, dtype=dtype, requires_grad=True)
        loss = dkd_loss(student, teacher, LABELS[:4])
        assert loss.item() == 0
        for gradient in gradients(loss, student, teacher):
            np.testing.assert_allclose(gradient, 0, atol=1e-7)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_two_classes_have_no_part_of_the_others(self, dtype):
        student = torch.tensor([[3.0, -1.0], [0.5, 2.0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[1.0, 0.0], [-1000.0, 4.0]], dtype=dtype, requires_grad=True)
        labels = torch.tensor([0, 1])
        others = dkd_loss(student, teacher, labels, alpha=0)
        assert others.item() == 0
        for gradient in gradients(others, student, teacher):
            np.testing.assert_array_equal(gradient, 0)
        kd = kd_loss(student, teacher).item()
        assert dkd_loss(student, teacher, labels).item() == pytest.approx(kd, rel=1e-6)

    def test_what_is_not_a_number_stays_visible(self, pair):
        student, teacher = (z.detach().clone() for z in pair)
        student[2, 3] = math.nan
        assert dkd_loss(student, teacher, LABELS).isnan()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, dtype):
        student, teacher = (z.detach().to(dtype) for z in pair)
        raised = dkd_loss(student.float(), teacher.float(), LABELS, temperature=3)
        assert dkd_loss(student, teacher, LABELS, temperature=3) == raised

    def test_autocast_changes_neither_value_nor_gradient(self, pair):
        student, teacher = (z.detach().float().requires_grad_() for z in pair)
        outside = dkd_loss(student, teacher, LABELS, temperature=4)
        with torch.autocast("cpu", torch.bfloat16):
            inside = dkd_loss(student, teacher, LABELS, temperature=4)
        assert inside == outside
        for ours, theirs in zip(
            gradients(inside, student, teacher), gradients(outside, student, teacher), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
    def test_refuses_a_temperature_that_is_not_positive(self, temperature):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
            dkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), FIRST, temperature=temperature)

    @pytest.mark.parametrize("option", ["alpha", "beta"])
    @pytest.mark.parametrize("value", [-1e-9, -1, math.nan])
    def test_refuses_a_negative_weight(self, option, value):
        with pytest.raises(ValueError, match=f"{option} must be at least 0, got {value}"):
            dkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), FIRST, **{option: value})

    def test_refuses_a_single_class(self):
        with pytest.raises(ValueError, match="against the others, got logits of 1 class"):
            dkd_loss(torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor([0, 0, 0]))
