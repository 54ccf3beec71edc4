"""RKD: its fields, and the batch that it needs."""

from typing import Any

import pytest
import torch

from anykd.errors import RecipeError
from anykd.losses import rkd_angle_loss, rkd_distance_loss
from anykd.methods import Method, build_method
from anykd.types import Features
from tests.methods.small import random_batch, small_pair


def build(**options: Any) -> Method:
    return build_method("rkd", *small_pair("cnn", "vit"), **options)


@pytest.mark.parametrize("options", [{}, {"distance_weight": 3.0, "angle_weight": 0.5}], ids=str)
def test_terms_are_the_losses_of_the_models_own_vectors(options):
    weights = {"distance_weight": 25.0, "angle_weight": 50.0} | options
    method, batch = build(**options).eval(), random_batch(6)
    own, other = (model(batch.images).pooled for model in (method.student, method.teacher))
    terms = method(batch).terms
    assert terms.keys() == {"task", "rkd_distance", "rkd_angle"}
    distance = weights["distance_weight"] * rkd_distance_loss(own, other)
    torch.testing.assert_close(terms["rkd_distance"], distance)
    angle = weights["angle_weight"] * rkd_angle_loss(own, other)
    torch.testing.assert_close(terms["rkd_angle"], angle)


@pytest.mark.parametrize(("part", "other"), [("distance", "angle"), ("angle", "distance")])
def test_either_part_can_be_left_out(part, other):
    terms = build(**{f"{part}_weight": 0})(random_batch()).terms
    assert terms.keys() == {"task", f"rkd_{other}"}


def test_two_weights_of_0_are_refused():
    with pytest.raises(RecipeError, match="use the method control"):
        build(distance_weight=0, angle_weight=0)


@pytest.mark.parametrize("option", ["distance_weight", "angle_weight"])
def test_a_batch_of_one_is_refused_in_words(option):
    with pytest.raises(RecipeError, match="RKD compares the images of a batch, got a batch of 1"):
        build(**{option: 0}).eval()(random_batch(1))


@pytest.mark.parametrize("count", [2, 4])
def test_images_that_coincide_have_a_finite_loss_and_gradient(count):
    # Two augmentations of one image, or a student that has collapsed.
    method, batch = build(), random_batch(4)
    vectors = torch.randn(4, 24)
    vectors[:count] = vectors[0]
    vectors.requires_grad_(True)
    seen = method.teacher(batch.images)
    own = Features(seen.stages, seen.prefixes, vectors, seen.logits)
    loss = torch.stack([*method.terms(batch, own, seen).values()]).sum()
    loss.backward()
    assert loss.isfinite()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()
