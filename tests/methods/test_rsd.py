"""RSD against NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf

from anykd.errors import RecipeError
from anykd.losses import rsd_loss
from anykd.methods import build_method
from anykd.methods.rsd import RSD
from tests.methods.small import random_batch, small_pair


def build(student: str = "cnn", teacher: str = "vit", **options: Any) -> RSD:
    method = build_method("rsd", *small_pair(student, teacher), **options)
    assert isinstance(method, RSD)
    return method


@pytest.mark.parametrize(("student", "teacher"), [("cnn", "vit"), ("vit", "cnn"), ("mlp", "swin")])
@pytest.mark.parametrize("options", [{}, {"rsd_weight": 2.0, "off_diagonal_weight": 0.5}], ids=str)
def test_terms_match_numpy(student, teacher, options):
    method, batch = build(student, teacher, **options).train(), random_batch(6)
    norm = method.head[1]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    torch.nn.init.normal_(norm.weight, 1, 0.3)
    torch.nn.init.normal_(norm.bias, 0, 0.3)
    torch.manual_seed(1)  # of stochastic depth
    own = method.student(batch.images).pooled.detach().double().numpy()
    other = method.teacher(batch.images).pooled.double().numpy()
    w1, scale, shift, w2 = (p.detach().double().numpy() for p in method.head.parameters())
    assert w1.shape == (2 * method.student.width, method.student.width)
    assert w2.shape == (method.teacher.width, 2 * method.student.width)
    x = own @ w1.T
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * scale + shift
    x = x * (1 + erf(x / np.sqrt(2))) / 2 @ w2.T
    x, t = ((v - v.mean(0)) / (v.std(0) + 1e-5) for v in (x, other))
    m = t.T @ x / 6
    diagonal = np.eye(len(m), dtype=bool)
    kappa = options.get("off_diagonal_weight", 0.01)
    expected = ((m[diagonal] - 1) ** 2).sum() + kappa * (m[~diagonal] ** 2).sum()
    torch.manual_seed(1)
    terms = method(batch).terms
    assert terms.keys() == {"task", "rsd"}
    expected *= options.get("rsd_weight", 0.1)
    assert terms["rsd"].item() == pytest.approx(expected, rel=1e-4)


def test_head_runs_on_its_statistics_in_evaluation():
    method, batch = build().eval(), random_batch()
    own, other = (model(batch.images).pooled for model in (method.student, method.teacher))
    expected = 0.1 * rsd_loss(method.head(own), other)
    torch.testing.assert_close(method(batch).terms["rsd"], expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_one_is_refused_in_words(training):
    method = build("vit", "cnn").train(training)
    with pytest.raises(RecipeError, match="RSD compares the images of a batch, got a batch of 1"):
        method(random_batch(1))


@pytest.mark.parametrize("option", ["rsd_weight", "off_diagonal_weight"])
def test_a_value_out_of_range_is_refused(option):
    with pytest.raises(RecipeError, match=rf"method.{option}: .*, got -1"):
        build("cnn", "vit", **{option: -1})
