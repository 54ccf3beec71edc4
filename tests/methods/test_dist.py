"""DIST: its fields, and the batch that it needs."""

from typing import Any

import pytest
import torch

from anykd.errors import RecipeError
from anykd.losses import dist_loss
from anykd.methods import Method, build_method
from tests.methods.small import random_batch, small_pair


def build(**options: Any) -> Method:
    return build_method("dist", *small_pair("cnn", "vit"), **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inter_weight": 3.0},
        {"intra_weight": 0.5},
        {"temperature": 4.0},
        {"intra_weight": 0.0},
        {"inter_weight": 0.0},
    ],
    ids=str,
)
def test_term_is_the_loss_of_the_models_own_scores(options):
    method, batch = build(**options).eval(), random_batch(6)
    own, other = (model(batch.images).logits for model in (method.student, method.teacher))
    terms = method(batch).terms
    assert terms.keys() == {"task", "dist"}
    torch.testing.assert_close(terms["dist"], dist_loss(own, other, **options))


def test_two_weights_of_0_are_refused():
    with pytest.raises(RecipeError, match="use the method control"):
        build(inter_weight=0, intra_weight=0)


def test_a_batch_of_one_is_refused_in_words_where_samples_are_correlated():
    with pytest.raises(RecipeError, match="DIST compares the images of a batch, got a batch of 1"):
        build().eval()(random_batch(1))


def test_a_batch_of_one_will_do_where_classes_alone_are():
    assert build(intra_weight=0).eval()(random_batch(1)).loss.isfinite()


@pytest.mark.parametrize("option", ["inter_weight", "intra_weight", "temperature"])
def test_a_value_out_of_range_is_refused(option):
    with pytest.raises(RecipeError, match=rf"method.{option}: .*, got -1"):
        build(**{option: -1})
