"""FitNet: maps and tokens of any grids, the stages chosen, and its fields."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from anykd.errors import RecipeError
from anykd.losses import hint_loss, kd_loss
from anykd.methods import build_method
from anykd.methods.fitnet import FitNet
from anykd.models import FrozenTeacher
from anykd.models.align import MapAligner
from anykd.types import Batch
from tests.methods.small import random_batch, small

STAGES = (1, 2, 3, 4)


def build(student: str = "cnn", teacher: str = "vit", sizes=(32, 32), **options: Any) -> FitNet:
    models = (small(student, 1, image_size=sizes[0]), small(teacher, 2, image_size=sizes[1]))
    method = build_method("fitnet", models[0], FrozenTeacher(models[1]), **options)
    assert isinstance(method, FitNet)
    return method


def way_of(aligner: nn.Module) -> str:
    """How a map's grid is changed."""
    assert isinstance(aligner, MapAligner)
    if aligner.resample:
        return "resample"
    if isinstance(aligner.project, nn.Sequential):
        return f"grow {aligner.project[1].upscale_factor}"
    assert isinstance(aligner.project, nn.Conv2d)
    factor = aligner.project.stride[0]
    return "keep" if factor == 1 else f"shrink {factor}"


# At 32 px the CNN's grids are 8, 4, 2, 1; tokens of 8 px have 4 in all stages, and at 56 px 7.
@pytest.mark.parametrize(
    ("student", "teacher", "sizes", "ways"),
    [
        ("cnn", "vit", (32, 32), ["shrink 2", "keep", "grow 2", "grow 4"]),
        ("vit", "cnn", (32, 32), ["grow 2", "keep", "shrink 2", "shrink 4"]),
        ("cnn", "vit", (32, 56), ["resample", "resample", "resample", "grow 7"]),
        ("vit", "cnn", (56, 32), ["resample", "resample", "resample", "shrink 7"]),
        ("vit", "mlp", (56, 32), ["resample"] * 4),
        ("mlp", "vit", (32, 56), ["resample"] * 4),
        ("distilled", "vit", (32, 32), ["keep"] * 4),
        ("swin", "cnn", (32, 32), ["keep"] * 4),
    ],
)
def test_any_two_grids_are_brought_together(student, teacher, sizes, ways):
    method, batch = build(student, teacher, sizes).eval(), random_batch()
    assert [way_of(aligner) for aligner in method.aligners] == ways
    own, other = method.student(batch.images), method.teacher(batch.images)
    output = method(batch)
    assert output.terms.keys() == {"task", "kd", *(f"hint_stage{stage}" for stage in STAGES)}
    for stage, aligner in zip(STAGES, method.aligners, strict=True):
        aligned = aligner(own.stages[stage - 1])
        assert aligned.shape == other.stages[stage - 1].shape
        expected = hint_loss(aligned, other.stages[stage - 1])
        torch.testing.assert_close(output.terms[f"hint_stage{stage}"], expected)
    output.loss.backward()
    gradients = [p.grad for p in method.aligners.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_prefix_tokens_have_no_say():
    method, batch = build("distilled", "vit").eval(), random_batch()
    own, other = method.student(batch.images), method.teacher(batch.images)
    assert own.prefixes[0] is not None
    assert other.prefixes[0] is not None
    without = [dataclasses.replace(seen, prefixes=(None,) * 4) for seen in (own, other)]
    expected, actual = method.terms(batch, own, other), method.terms(batch, *without)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("stages", [(1,), (4, 2), (1, 2, 3)])
def test_stages_chosen_are_those_regressed(stages):
    method, batch = build(stages=stages).eval(), random_batch()
    every = build().eval()
    for stage, aligner in zip(stages, method.aligners, strict=True):
        aligner.load_state_dict(every.aligners[stage - 1].state_dict())
    terms, expected = method(batch).terms, every(batch).terms
    assert terms.keys() == {"task", "kd", *(f"hint_stage{stage}" for stage in stages)}
    assert all(torch.equal(terms[key], expected[key]) for key in terms)


@pytest.mark.parametrize("stages", [(1, 1), (0,), (5,), ()])
def test_stages_that_do_not_exist_or_repeat_are_refused(stages):
    with pytest.raises(RecipeError, match=r"method\.?(stages)?"):
        build(stages=stages)


def test_terms_are_scaled_by_their_weights():
    plain, batch = build().eval(), random_batch()
    weighted = build(hint_weight=0.5, kd_weight=3.0, task_weight=2.0).eval()
    weighted.load_state_dict(plain.state_dict())
    once, scaled = plain(batch).terms, weighted(batch).terms
    for key, term in once.items():
        factor = {"task": 2.0, "kd": 3.0}.get(key, 0.5)
        torch.testing.assert_close(scaled[key], factor * term)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_is_that_of_kd(temperature):
    method, batch = build(temperature=temperature).eval(), random_batch()
    own, other = (model(batch.images).logits for model in (method.student, method.teacher))
    expected = kd_loss(own, other, temperature=temperature)
    torch.testing.assert_close(method(batch).terms["kd"], expected)


def test_divergence_can_be_left_out():
    method = build(kd_weight=0, task_weight=0)
    hints = {f"hint_stage{stage}" for stage in STAGES}
    assert method(Batch(random_batch().images)).terms.keys() == hints


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    method = build("cnn", "cnn").eval()
    method.student.load_state_dict(method.teacher.model.state_dict())
    for aligner in method.aligners:
        project = aligner.get_submodule("project")
        assert isinstance(project, nn.Conv2d)
        nn.init.dirac_(project.weight)  # the identity
    terms = method(random_batch()).terms
    del terms["task"]
    assert all(term.item() == pytest.approx(0, abs=1e-6) for term in terms.values())
