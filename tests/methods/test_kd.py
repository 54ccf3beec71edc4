"""KD against NumPy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from anykd.errors import RecipeError
from anykd.methods import build_method
from anykd.types import Batch
from tests.methods.small import random_batch, small_pair


@pytest.mark.parametrize(("temperature", "kd_weight"), [(1.0, 1.0), (4.0, 0.3)])
def test_terms_match_numpy(temperature, kd_weight):
    student, teacher = small_pair("cnn", "vit")
    method = build_method("kd", student, teacher, temperature=temperature, kd_weight=kd_weight)
    batch = random_batch()
    with torch.no_grad():
        terms = method.eval()(batch).terms
        own, other = student(batch.images).logits, teacher(batch.images).logits
    z_s, z_t = (z.double().numpy() / temperature for z in (own, other))
    divergence = (softmax(z_t, 1) * (log_softmax(z_t, 1) - log_softmax(z_s, 1))).sum(1).mean()
    assert terms.keys() == {"task", "kd"}
    assert terms["kd"].item() == pytest.approx(kd_weight * temperature**2 * divergence, rel=1e-4)


def test_without_task_weight_no_labels_are_needed():
    student, teacher = small_pair("cnn", "vit")
    method, images = build_method("kd", student, teacher, task_weight=0), random_batch().images
    output = method(Batch(images))
    assert output.terms.keys() == {"kd"}
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_student_that_equals_its_teacher_has_nothing_to_learn():
    student, teacher = small_pair("cnn", "cnn")
    student.load_state_dict(teacher.model.state_dict())
    method = build_method("kd", student, teacher).eval()
    assert np.isclose(method(random_batch()).terms["kd"].item(), 0, atol=1e-6)


@pytest.mark.parametrize("option", ["temperature", "kd_weight"])
def test_a_value_out_of_range_is_refused(option):
    with pytest.raises(RecipeError, match=rf"method.{option}: .*, got -1"):
        build_method("kd", *small_pair("cnn", "vit"), **{option: -1})
