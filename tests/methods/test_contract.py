"""What every method promises, for every pair of families."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anykd.engine.config import TrainConfig
from anykd.engine.optim import build_optimizer
from anykd.errors import DataError
from anykd.methods import METHODS, Method, build_method
from anykd.models import FrozenTeacher
from anykd.types import Batch
from tests.methods.small import PAIRS, fingerprint, random_batch, small, small_pair


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request) -> tuple[str, str]:
    """Families of student and teacher."""
    return request.param


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


@pytest.fixture
def method(name, pair) -> Method:
    return build_method(name, *small_pair(*pair))


def train(method: Method, steps: int = 3) -> None:
    method.train()
    optimizer = build_optimizer(method, TrainConfig(optimizer="sgd", peak_lr=0.01))
    for _ in range(steps):
        optimizer.zero_grad()
        method(random_batch()).loss.backward()
        optimizer.step()


class TestEveryPair:
    def test_gradient_reaches_every_trainable_parameter(self, method):
        method.train()
        method(random_batch()).loss.backward()
        trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
        assert trained
        assert not [name for name, gradient in trained.items() if gradient is None]
        assert all(g is not None and g.isfinite().all() for g in trained.values())

    def test_training_leaves_every_bit_of_the_teacher_and_moves_the_student(self, method):
        teacher = method._teacher
        assert teacher is not None
        before, student = (fingerprint(m.state_dict()) for m in (teacher.model, method.student))
        train(method)
        assert fingerprint(teacher.model.state_dict()) == before
        assert fingerprint(method.student.state_dict()) != student
        assert all(p.grad is None for p in teacher.model.parameters())

    def test_teacher_is_neither_trained_nor_saved(self, method):
        teacher = method._teacher
        assert teacher is not None
        method.requires_grad_(True)
        method.train()
        optimizer = build_optimizer(method, TrainConfig())
        own = {id(p) for p in teacher.model.parameters()}
        assert not own & {id(p) for p in method.parameters()}
        assert not own & {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert not any(
            "teacher." in key or "_teacher" in key.split(".")[0] for key in method.state_dict()
        )
        assert not any(part.training for part in teacher.model.modules())

    def test_saved_state_gives_the_same_loss_in_a_fresh_method(self, name, pair):
        teacher = FrozenTeacher(small(pair[1], 2))
        method = build_method(name, small(pair[0], 1), teacher)
        train(method)
        torch.manual_seed(5)
        fresh = build_method(name, small(pair[0], 3), teacher)
        batch = random_batch()
        with torch.no_grad():
            expected = method.eval()(batch).terms
            assert fresh.eval()(batch).terms != expected
            fresh.load_state_dict(method.state_dict(), strict=True)
            actual = fresh(batch).terms
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)

    def test_terms_are_finite_and_sum_to_the_loss(self, method):
        output = method(random_batch())
        assert all(term.shape == () and term.isfinite() for term in output.terms.values())
        total = sum(term.item() for term in output.terms.values())
        assert output.loss.item() == pytest.approx(total, rel=1e-5)

    def test_inference_uses_the_student_alone(self, method):
        batch = random_batch()
        with torch.no_grad():
            assert torch.equal(method.eval()(batch).logits, method.student(batch.images).logits)

    def test_stays_finite_under_bfloat16_autocast(self, method):
        with torch.autocast("cpu", torch.bfloat16):
            output = method(random_batch())
        assert all(term.dtype == torch.float32 for term in output.terms.values())
        output.loss.backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        assert output.loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


class TestEveryMethod:
    @pytest.fixture
    def pair(self) -> tuple[str, str]:
        return "cnn", "vit"

    def test_labels_are_asked_for(self, method):
        images = random_batch().images
        with pytest.raises(DataError, match="needs labels and the data has none") as caught:
            method(Batch(images))
        assert "task_weight = 0" in caught.value.hint

    def test_task_weight_scales_the_cross_entropy_with_the_distributions(self, name, method):
        batch = random_batch()
        assert batch.labels is not None
        heavy = build_method(name, method.student, method._teacher, task_weight=2.5).eval()
        with torch.no_grad():
            log_p = method.eval()(batch).logits.log_softmax(dim=1)
            expected = -(batch.labels * log_p).sum(1).mean()
            torch.testing.assert_close(method(batch).terms["task"], expected)
            torch.testing.assert_close(heavy(batch).terms["task"], 2.5 * expected)

    def test_a_teacher_of_another_image_size_is_taken(self, name):
        teacher = FrozenTeacher(small("vit", 2, image_size=48))
        method = build_method(name, small("cnn", 1), teacher)
        assert method(random_batch()).loss.isfinite()

    def test_a_distilled_student_is_taught(self, name):
        method = build_method(name, *small_pair("distilled", "cnn"))
        method.train()(random_batch()).loss.backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)

    @pytest.mark.parametrize(
        ("family", "names"),
        [
            ("vit", {"pos_embed", "cls_token"}),
            ("distilled", {"pos_embed", "cls_token", "dist_token"}),
            (
                "swin",
                {f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)},
            ),
        ],
    )
    def test_what_the_student_keeps_from_weight_decay_is_kept_from_it(self, name, family, names):
        method = build_method(name, *small_pair(family, "cnn"))
        optimizer = build_optimizer(method, TrainConfig(weight_decay=0.05))
        free = {
            id(p)
            for group in optimizer.param_groups
            if group["weight_decay"] == 0
            for p in group["params"]
        }
        parameters = dict(method.named_parameters())
        wanted = {f"student.model.{name}" for name in names}
        assert wanted <= method.no_weight_decay() & parameters.keys()
        for key, parameter in parameters.items():
            if parameter.requires_grad:
                expected = parameter.ndim <= 1 or key in method.no_weight_decay()
                assert (id(parameter) in free) == expected, key

    def test_everything_that_trains_is_in_the_optimizer_once(self, method):
        optimizer = build_optimizer(method, TrainConfig())
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in method.parameters() if p.requires_grad)


COMPILE = """
import torch
from anykd.methods import build_method
from tests.methods.small import random_batch, small_pair

batch = random_batch()
for name in ("kd", "ofa", "fbt"):
    method = build_method(name, *small_pair("cnn", "vit"))
    expected = method(batch).terms
    actual = torch.compile(method, fullgraph=True, backend="eager")(batch).terms
    torch.testing.assert_close(actual, expected)
    print(name)
"""


def test_training_step_is_one_graph_for_the_compiler():
    # In another process: the compiler cannot look through the shape checks of a test run.
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["kd", "ofa", "fbt"]
