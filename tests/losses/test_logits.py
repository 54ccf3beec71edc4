"""kd_loss and ofa_loss against NumPy, against cases by hand, and against their laws."""

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

from anykd.losses import kd_loss, ofa_loss
from tests.golden import make

LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
HALVES = [torch.float32, torch.bfloat16, torch.float16]

scores = arrays(np.float64, (6, 5), elements=st.floats(-30, 30)).map(torch.from_numpy)
temperatures = st.floats(0.5, 8.0)
gammas = st.floats(0.5, 2.0)


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return numpy(*torch.autograd.grad(loss, inputs))


class TestKDLoss:
    def test_two_classes_by_hand(self):
        # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)
        student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
        expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        assert kd_loss(student, teacher, temperature=1).item() == pytest.approx(expected)

    def test_temperature_by_hand(self):
        # Scores twice as large at T = 2 give the distributions above, and T² = 4.
        student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
        expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
        assert kd_loss(student, teacher, temperature=2).item() == pytest.approx(expected)

    def test_direction_by_hand(self):
        # The other way round: KL((1/2, 1/2) || (3/4, 1/4)) = 1/2 ln(2/3) + 1/2 ln 2
        student, teacher = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
        expected = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
        assert kd_loss(student, teacher).item() == pytest.approx(expected)

    @pytest.mark.parametrize("temperature", [0.5, 1, 4])
    def test_matches_scipy(self, pair, temperature):
        p_s, p_t = (scipy.special.softmax(z / temperature, axis=1) for z in numpy(*pair))
        expected = temperature**2 * np.mean(scipy.stats.entropy(p_t, p_s, axis=1))
        assert kd_loss(*pair, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("temperature", [0.5, 1, 4])
    def test_gradients_match_numpy(self, pair, temperature):
        actual = gradients(kd_loss(*pair, temperature=temperature), *pair)
        for wrt in (0, 1):
            expected = make.gradient(
                lambda s, t: make.kd(s, t, temperature=temperature), *numpy(*pair), wrt=wrt
            )
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("temperature", [0.5, 1, 4])
    def test_gradient_is_the_difference_of_the_distributions(self, pair, temperature):
        (actual,) = gradients(kd_loss(*pair, temperature=temperature), pair[0])
        p_s, p_t = (scipy.special.softmax(z / temperature, axis=1) for z in numpy(*pair))
        np.testing.assert_allclose(actual, temperature * (p_s - p_t) / 6, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("temperature", [0.5, 1, 4])
    def test_float32_is_close_to_float64(self, pair, temperature):
        singles = [z.detach().float().requires_grad_() for z in pair]
        exact = [z.double().detach().requires_grad_() for z in singles]
        loss, expected = (kd_loss(*z, temperature=temperature) for z in (singles, exact))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    @given(scores, temperatures)
    def test_is_zero_when_equal(self, logits, temperature):
        student = logits.clone().requires_grad_()
        loss = kd_loss(student, logits, temperature=temperature)
        assert loss.item() == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(gradients(loss, student)[0], 0, atol=1e-12)

    @given(scores, scores, temperatures)
    def test_is_never_negative(self, student, teacher, temperature):
        assert kd_loss(student, teacher, temperature=temperature).item() >= -1e-12

    @given(scores, scores, temperatures, st.floats(-50, 50), st.floats(-50, 50))
    def test_a_constant_added_to_all_classes_changes_nothing(self, s, t, temperature, a, b):
        loss, shifted = (
            kd_loss(*z, temperature=temperature).item() for z in ((s, t), (s + a, t + b))
        )
        assert shifted == pytest.approx(loss, rel=1e-9, abs=1e-9)

    @given(scores, scores, temperatures)
    def test_scores_and_temperature_scale_together_up_to_its_square(self, s, t, temperature):
        scaled = kd_loss(s * temperature, t * temperature, temperature=temperature).item()
        assert scaled == pytest.approx(temperature**2 * kd_loss(s, t).item(), rel=1e-9, abs=1e-9)

    def test_high_temperature_gives_half_the_variance_of_the_difference(self, pair):
        # Only the factor T² keeps the loss of this size while the distributions become uniform.
        student, teacher = numpy(*pair)
        expected = np.mean(np.var(student - teacher, axis=1)) / 2
        assert kd_loss(*pair, temperature=1e4).item() == pytest.approx(expected, rel=1e-3)

    @given(scores, scores, st.permutations(range(6)), st.permutations(range(5)))
    def test_order_of_samples_and_classes_is_irrelevant(self, s, t, samples, classes):
        shuffled = kd_loss(s[samples][:, classes], t[samples][:, classes]).item()
        assert shuffled == pytest.approx(kd_loss(s, t).item(), rel=1e-12, abs=1e-12)

    def test_is_the_mean_over_samples(self, pair):
        each = [kd_loss(s[None], t[None]).item() for s, t in zip(*pair, strict=True)]
        assert kd_loss(*pair).item() == pytest.approx(np.mean(each), rel=1e-12)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_gap_of_1000_is_exact(self, dtype):
        # Teacher certain of class 1, student of class 0: KL = 1000, gradient p_s - p_t = (1, -1).
        student = torch.tensor([[1000.0, 0.0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[0.0, 1000.0]], dtype=dtype)
        loss = kd_loss(student, teacher)
        assert loss.dtype == torch.float32
        assert loss.item() == 1000
        np.testing.assert_array_equal(gradients(loss, student)[0], [[1, -1]])

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("temperature", [1, 4])
    def test_gradients_are_finite_at_a_gap_of_1000(self, dtype, temperature):
        student = torch.tensor([[1000.0, 0, -3], [0, 0, 0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[0.0, 1000, 5], [-1000, 0, 1]], dtype=dtype, requires_grad=True)
        loss = kd_loss(student, teacher, temperature=temperature)
        assert np.isfinite(loss.item())
        assert all(np.isfinite(g).all() for g in gradients(loss, student, teacher))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, dtype):
        halves = [z.detach().to(dtype) for z in pair]
        assert kd_loss(*halves, temperature=3) == kd_loss(
            *(z.float() for z in halves), temperature=3
        )

    def test_autocast_changes_nothing(self, pair):
        student, teacher = (z.detach().float() for z in pair)
        with torch.autocast("cpu", torch.bfloat16):
            inside = kd_loss(student, teacher, temperature=4)
        assert inside == kd_loss(student, teacher, temperature=4)

    @pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
    def test_refuses_a_temperature_that_is_not_positive(self, temperature):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
            kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


class TestOFALoss:
    @pytest.mark.parametrize(
        ("gamma", "form", "target", "other"),
        [
            (1.0, "code", 0.75, 0.25),
            (2.0, "code", 33 / 16, 1 / 16),  # (7/4)² - 1 and (1/4)²
            (1.0, "paper", 1.75, 0.25),
            (2.0, "paper", 49 / 16, 0.25),
        ],
    )
    def test_weights_by_hand(self, gamma, form, target, other):
        # p_t = (3/4, 1/4), class 0 the target; p_s = (1/5, 4/5) tells the two weights apart.
        teacher = torch.tensor([[math.log(3), 0.0]])
        student = torch.tensor([[0.0, math.log(4)]])
        expected = target * math.log(5) + other * math.log(5 / 4)
        actual = ofa_loss(student, teacher, torch.tensor([0]), gamma=gamma, form=form)
        assert actual.item() == pytest.approx(expected)

    @pytest.mark.parametrize("form", ["code", "paper"])
    @pytest.mark.parametrize(("gamma", "temperature"), [(1, 1), (1.5, 1), (0.7, 2), (2, 4)])
    def test_value_and_gradients_match_numpy(self, pair, gamma, temperature, form):
        options = {"gamma": gamma, "temperature": temperature, "form": form}

        def reference(student, teacher):
            return make.ofa(student, teacher, LABELS.tolist(), **options)

        student, teacher = pair
        loss = ofa_loss(student, teacher, LABELS, **options)
        actual = gradients(loss, student, teacher)
        assert loss.item() == pytest.approx(reference(*numpy(*pair)), rel=1e-12)
        for wrt in (0, 1):
            expected = make.gradient(reference, *numpy(*pair), wrt=wrt)
            np.testing.assert_allclose(actual[wrt], expected, rtol=1e-9, atol=1e-13)

    @pytest.mark.parametrize("form", ["code", "paper"])
    def test_float32_is_close_to_float64(self, pair, form):
        s, t = singles = [z.detach().float().requires_grad_() for z in pair]
        u, v = exact = [z.double().detach().requires_grad_() for z in singles]
        loss, expected = (ofa_loss(*z, LABELS, gamma=1.5, form=form) for z in ((s, t), (u, v)))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(
            gradients(loss, *singles), gradients(expected, *exact), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_gamma_1_is_the_cross_entropy_to_the_teacher(self, pair):
        student, teacher = pair
        expected = F.cross_entropy(student, teacher.softmax(dim=1)).item()
        assert ofa_loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-12)

    @given(scores, scores)
    def test_gamma_1_has_the_gradient_of_kd_at_temperature_1(self, student, teacher):
        student.requires_grad_()
        (ofa,) = gradients(ofa_loss(student, teacher, LABELS, gamma=1.0), student)
        (kd,) = gradients(kd_loss(student, teacher), student)
        np.testing.assert_allclose(ofa, kd, rtol=1e-9, atol=1e-12)

    @given(scores, scores, gammas, temperatures)
    def test_there_is_no_squared_temperature(self, s, t, gamma, temperature):
        scaled = ofa_loss(
            s * temperature, t * temperature, LABELS, gamma=gamma, temperature=temperature
        )
        plain = ofa_loss(s, t, LABELS, gamma=gamma)
        assert scaled.item() == pytest.approx(plain.item(), rel=1e-9, abs=1e-9)

    @given(scores, scores, gammas, st.sampled_from(["code", "paper"]))
    def test_class_indices_equal_one_hot_labels(self, s, t, gamma, form):
        one_hot = F.one_hot(LABELS, 5).double()
        by_index, by_row = (
            ofa_loss(s, t, labels, gamma=gamma, form=form).item() for labels in (LABELS, one_hot)
        )
        assert by_index == by_row

    @given(scores, scores, gammas, st.floats(0.0, 0.49))
    def test_of_mixed_and_smoothed_labels_the_most_probable_class_counts(self, s, t, gamma, share):
        one_hot = F.one_hot(LABELS, 5).double()
        mixed = (1 - share) * one_hot + share * one_hot.roll(1, dims=1)
        smoothed = (1 - share) * one_hot + share / 5
        expected = ofa_loss(s, t, LABELS, gamma=gamma).item()
        assert ofa_loss(s, t, mixed, gamma=gamma).item() == expected
        assert ofa_loss(s, t, smoothed, gamma=gamma).item() == expected

    @given(scores, scores, gammas, st.floats(-50, 50), st.floats(-50, 50))
    def test_a_constant_added_to_all_classes_changes_nothing(self, s, t, gamma, a, b):
        loss, shifted = (ofa_loss(*z, LABELS, gamma=gamma).item() for z in ((s, t), (s + a, t + b)))
        assert shifted == pytest.approx(loss, rel=1e-9, abs=1e-9)

    @given(scores, scores, gammas, st.permutations(range(6)))
    def test_order_of_samples_is_irrelevant(self, s, t, gamma, order):
        shuffled = ofa_loss(s[order], t[order], LABELS[order], gamma=gamma).item()
        assert shuffled == pytest.approx(ofa_loss(s, t, LABELS, gamma=gamma).item(), rel=1e-12)

    @given(scores, scores, gammas, st.sampled_from(["code", "paper"]))
    def test_is_never_negative(self, s, t, gamma, form):
        assert ofa_loss(s, t, LABELS, gamma=gamma, form=form).item() >= 0

    @pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
    @pytest.mark.parametrize("p", [1e-12, 1e-9, 1e-5])
    def test_target_weight_does_not_cancel_where_the_teacher_rules_the_target_out(self, p, gamma):
        # The student gives the target log p = -1000 and the other class 0, so that the loss is
        # 1000 ((1 + p)^γ - 1). In float32, 1 + 1e-12 is 1.
        student = torch.tensor([[0.0, 1000.0]])
        teacher = torch.tensor([[math.log(p) - math.log1p(-p), 0.0]], requires_grad=True)
        with localcontext() as context:
            context.prec = 50
            given_p = 1 / (1 + (-Decimal(teacher[0, 0].item())).exp())
            expected = 1000 * ((1 + given_p) ** Decimal(gamma) - 1)
            # d/dz ((1 + p)^γ - 1) = γ (1 + p)^(γ - 1) p (1 - p)
            slope = Decimal(gamma) * (1 + given_p) ** (Decimal(gamma) - 1) * given_p * (1 - given_p)
        loss = ofa_loss(student, teacher, torch.tensor([0]), gamma=gamma)
        assert loss.item() == pytest.approx(float(expected), rel=1e-5)
        (gradient,) = gradients(loss, teacher)
        assert gradient[0, 0] == pytest.approx(1000 * float(slope), rel=1e-5)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5])
    @pytest.mark.parametrize("form", ["code", "paper"])
    def test_value_and_gradients_are_finite_at_a_gap_of_1000(self, dtype, gamma, form):
        student = torch.tensor([[1000.0, 0, -3], [0, 0, 0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[0.0, 1000, 5], [-1000, 0, 1]], dtype=dtype, requires_grad=True)
        for labels in (torch.tensor([0, 0]), torch.tensor([1, 2])):
            loss = ofa_loss(student, teacher, labels, gamma=gamma, form=form)
            assert loss.dtype == torch.float32
            assert np.isfinite(loss.item())
            assert all(np.isfinite(g).all() for g in gradients(loss, student, teacher))

    def test_gap_of_1000_is_exact(self):
        # The teacher is certain of class 1, which weighs 2^γ - 1 as target and 1 otherwise.
        student, teacher = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
        hit, miss = torch.tensor([1]), torch.tensor([0])
        assert ofa_loss(student, teacher, hit, gamma=2.0).item() == pytest.approx(3000)
        assert ofa_loss(student, teacher, miss, gamma=2.0).item() == pytest.approx(1000)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_raised_before_anything_is_computed(self, pair, dtype):
        student, teacher = (z.detach().to(dtype) for z in pair)
        raised = ofa_loss(student.float(), teacher.float(), LABELS, gamma=1.5)
        assert ofa_loss(student, teacher, LABELS, gamma=1.5) == raised

    def test_autocast_changes_nothing(self, pair):
        student, teacher = (z.detach().float() for z in pair)
        with torch.autocast("cpu", torch.bfloat16):
            inside = ofa_loss(student, teacher, LABELS, gamma=1.5)
        assert inside == ofa_loss(student, teacher, LABELS, gamma=1.5)

    @pytest.mark.parametrize("option", ["gamma", "temperature"])
    @pytest.mark.parametrize("value", [0, -1.0, math.nan])
    def test_refuses_an_option_that_is_not_positive(self, option, value):
        with pytest.raises(ValueError, match=f"{option} must be positive, got {value}"):
            ofa_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), **{option: value})

    def test_refuses_an_unknown_form_and_names_the_known_ones(self):
        with pytest.raises(ValueError, match="form must be one of code, paper, got 'papr'"):
            ofa_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), form="papr")
