"""DKD: its fields, its ramp and its need of labels."""

import copy
from typing import Any

import pytest
import torch

from anykd.errors import DataError, RecipeError
from anykd.losses import dkd_loss
from anykd.methods import build_method
from anykd.methods.dkd import DKD
from anykd.types import Batch
from tests.methods.small import random_batch, small_pair


def build(**options: Any) -> DKD:
    method = build_method("dkd", *small_pair("cnn", "vit"), **options)
    assert isinstance(method, DKD)
    return method


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.5}, {"beta": 8.0}, {"temperature": 4.0}, {"alpha": 0.0, "beta": 3.0}],
    ids=str,
)
def test_term_is_the_loss_of_the_models_own_scores(options):
    method, batch = build(dkd_weight=0.3, **options).eval(), random_batch()
    own, other = (model(batch.images).logits for model in (method.student, method.teacher))
    assert batch.labels is not None
    expected = 0.3 * dkd_loss(own, other, batch.labels, **options)
    terms = method(batch).terms
    assert terms.keys() == {"task", "dkd"}
    torch.testing.assert_close(terms["dkd"], expected)


def test_labels_are_read_even_without_task_term():
    method, batch = build(task_weight=0), random_batch()
    assert method(batch).terms.keys() == {"dkd"}
    with pytest.raises(DataError, match="DKD needs labels") as caught:
        method(Batch(batch.images))
    assert caught.value.hint == "choose a method that needs none, such as kd"


class TestRamp:
    def test_is_off_by_default(self):
        method, batch = build().train(), random_batch()
        assert torch.equal(method(batch).terms["dkd"], method(batch).terms["dkd"])

    def test_grows_to_the_full_weight_in_so_many_training_steps(self):
        # The batch norms of a student in training see the same batch each time.
        batch = random_batch()
        full = build().train()(batch).terms["dkd"]
        method = build(ramp_steps=4).train()
        seen = torch.stack([method(batch).terms["dkd"] for _ in range(6)])
        torch.testing.assert_close(seen / full, torch.tensor([0.25, 0.5, 0.75, 1.0, 1.0, 1.0]))

    def test_leaves_the_task_term_alone(self):
        batch = random_batch()
        task, ramped = (build(ramp_steps=n).train()(batch).terms["task"] for n in (0, 4))
        assert torch.equal(task, ramped)

    def test_stands_still_in_evaluation(self):
        method, batch = build(ramp_steps=4), random_batch()
        method.train()(batch)
        evaluated = [method.eval()(batch).terms["dkd"] for _ in range(2)]
        assert torch.equal(*evaluated)
        assert method.steps == 1

    def test_goes_on_from_saved_state(self):
        method, resumed, batch = build(ramp_steps=4), build(ramp_steps=4), random_batch()
        for _ in range(2):
            method.train()(batch)
        resumed.load_state_dict(copy.deepcopy(method.state_dict()))
        assert torch.equal(resumed.train()(batch).loss, method(batch).loss)
        assert resumed.steps == 3


@pytest.mark.parametrize("option", ["alpha", "beta", "temperature", "dkd_weight", "ramp_steps"])
def test_a_value_out_of_range_is_refused(option):
    with pytest.raises(RecipeError, match=rf"method.{option}: .*, got -1"):
        build(**{option: -1})
