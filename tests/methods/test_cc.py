"""CC: its fields, both maps in training, and the batch that it needs."""

from typing import Any

import pytest
import torch

from anykd.errors import RecipeError
from anykd.losses import correlation_loss
from anykd.methods import build_method
from anykd.methods.cc import CC
from tests.methods.small import random_batch, small_pair


def build(**options: Any) -> CC:
    method = build_method("cc", *small_pair("cnn", "vit"), **options)
    assert isinstance(method, CC)
    return method


@pytest.mark.parametrize("variant", ["consecutive", "matrix"])
@pytest.mark.parametrize("embed_dim", [128, 7])
def test_term_is_the_loss_of_both_sides_mapped_vectors(variant, embed_dim):
    method = build(variant=variant, embed_dim=embed_dim, cc_weight=0.3).eval()
    batch = random_batch(6)
    own = method.student_embed(method.student(batch.images).pooled)
    other = method.teacher_embed(method.teacher(batch.images).pooled)
    assert own.shape == other.shape == (6, embed_dim)
    terms = method(batch).terms
    assert terms.keys() == {"task", "cc"}
    expected = 0.3 * correlation_loss(own, other, variant=variant)
    torch.testing.assert_close(terms["cc"], expected)


def test_default_is_the_form_and_weight_of_the_published_tables():
    plain, batch = build().eval(), random_batch()
    spelt = build(variant="consecutive", cc_weight=0.02, embed_dim=128).eval()
    spelt.load_state_dict(plain.state_dict())
    assert torch.equal(spelt(batch).loss, plain(batch).loss)


@pytest.mark.parametrize("variant", ["consecutive", "matrix"])
def test_both_maps_are_trained(variant):
    method = build(variant=variant)
    method(random_batch()).loss.backward()
    for embed in (method.student_embed, method.teacher_embed):
        assert embed.weight.grad is not None
        assert embed.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("variant", ["consecutive", "matrix"])
def test_a_batch_of_one_is_refused_in_words(variant):
    with pytest.raises(RecipeError, match="CC compares the images of a batch") as caught:
        build(variant=variant).eval()(random_batch(1))
    assert caught.value.hint == "raise train.batch_size"


@pytest.mark.parametrize(("option", "value"), [("variant", "rows"), ("embed_dim", 0)])
def test_a_value_that_means_nothing_is_refused(option, value):
    with pytest.raises(RecipeError, match=rf"method.{option}: .*got {value!r}"):
        build(**{option: value})
