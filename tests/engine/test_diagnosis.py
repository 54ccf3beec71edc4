import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anykd.engine import Listener, Stopwatch, Trainer
from anykd.engine.diagnosis import diagnosed_epochs, gradient_norms
from anykd.methods import Method, build_method
from anykd.models import FrozenTeacher
from anykd.models.recompute import recompute_blocks
from anykd.types import Batch, StepOutput
from tests.engine.tiny import RandomLoader, cnn, config, vit
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {"crd": {"num_samples": 16, "num_negatives": 4}}


def build(name: str) -> Method:
    teacher = None if name == "control" else FrozenTeacher(vit(seed=1))
    student = cnn()
    torch.manual_seed(1)
    return build_method(name, student, teacher, **OPTIONS.get(name, {}))


def train(method: Method, diagnoses: int, **options: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    """Three epochs of two steps each."""
    given = config(epochs=3, diagnoses=diagnoses, **options)
    running = Trainer(method, method.student, RandomLoader(), given, device=CPU, seed=0)
    logged: list[dict[str, Any]] = []
    running.fit(Listener(log=logged.append))
    return running, logged


def seen(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in logged if line["event"] == "diagnosis"]


def assert_same(left: Trainer, right: Trainer) -> None:
    torch.testing.assert_close(left.state()[0], right.state()[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("epochs", "times", "expected"),
    [
        (100, 0, []),
        (100, 1, [99]),
        (100, 2, [0, 99]),
        (101, 5, [0, 25, 50, 75, 100]),
        (3, 10, [0, 1, 2]),
        (1, 10, [0]),
    ],
)
def test_epochs_are_spread_evenly_with_the_first_and_the_last(epochs, times, expected):
    assert sorted(diagnosed_epochs(epochs, times)) == expected


class TestNothingChanges:
    @pytest.mark.parametrize("name", ["control", "kd", "fbt", "crd"])
    @pytest.mark.parametrize("options", [{}, {"grad_accum": 2, "clip_grad": 0.5, "ema_decay": 0.9}])
    def test_whatever_the_method(self, name, options):
        looked, lines = train(build(name), 10, **options)
        blind, no_lines = train(build(name), 0, **options)
        assert (len(seen(lines)), len(seen(no_lines))) == (3, 0)
        assert_same(looked, blind)

    def test_where_blocks_are_computed_again(self):
        runs = []
        for diagnoses in (10, 0):
            method = build("kd")
            recompute_blocks(method.student)
            runs.append(train(method, diagnoses))
        assert len(seen(runs[0][1])) == 3
        assert_same(runs[0][0], runs[1][0])
        kept, lines = train(build("kd"), 10)
        assert_same(runs[0][0], kept)
        assert [line["grad_norms"] for line in seen(runs[0][1])] == [
            line["grad_norms"] for line in seen(lines)
        ]


class Together:
    """What two ranks do, all in one start of them."""

    METHODS = ("fbt", "crd")

    @staticmethod
    def work() -> dict[str, Any]:
        found: dict[str, Any] = {"norm": _norm_on_a_rank()}
        for name in Together.METHODS:
            for diagnoses in (10, 0):
                running, logged = train(build(name), diagnoses, grad_accum=2, clip_grad=0.5)
                norms = [line["grad_norms"] for line in seen(logged)]
                found[f"{name} {diagnoses}"] = {"state": running.state()[0], "norms": norms}
        return found


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return run_on_ranks(Together.work, folder=tmp_path_factory.mktemp("ranks"))


@pytest.mark.distributed
class TestTwoRanks:
    @pytest.mark.parametrize("name", Together.METHODS)
    def test_train_the_same_whether_looked_at_or_not(self, name, on_ranks):
        for found in on_ranks:
            looked, blind = found[f"{name} 10"], found[f"{name} 0"]
            assert (len(looked["norms"]), len(blind["norms"])) == (3, 0)
            torch.testing.assert_close(looked["state"], blind["state"], rtol=0, atol=0)
            assert looked["norms"] == on_ranks[0][f"{name} 10"]["norms"]

    def test_have_the_norms_of_the_whole_batch(self, on_ranks):
        module = _Plain()
        alone = gradient_norms([module(_Plain.batch()).loss], list(module.parameters()))
        for found in on_ranks:
            torch.testing.assert_close(found["norm"], alone)


class TestNumbers:
    def test_are_those_of_each_terms_own_backward_pass(self):
        method, batch = build("fbt").train(), next(RandomLoader().batches(0))
        parameters = list(method.student.parameters())
        names = list(method(batch).terms)
        found = gradient_norms(list(method(batch).terms.values()), parameters)
        for name, norm in zip(names, found, strict=True):
            method.zero_grad()
            method(batch).terms[name].backward()
            gradients = [p.grad.norm() for p in parameters if p.grad is not None]
            expected = torch.stack(gradients).norm() if gradients else torch.tensor(0.0)
            torch.testing.assert_close(norm, expected)

    def test_of_the_control_arm_are_the_gradient_that_is_logged(self):
        _, logged = train(build("control"), 10)
        for line in seen(logged):
            step = next(
                other
                for other in logged
                if other["event"] == "step"
                and (other["epoch"], other["step"]) == (line["epoch"], line["step"])
            )
            assert line["grad_norms"]["task"] == pytest.approx(step["grad_norm"], rel=1e-5)
            assert line["grad_shares"] == {"task": 1.0}

    def test_do_not_depend_on_the_loss_scale(self):
        module = _Plain()
        plain, scaled = (
            gradient_norms([module(_Plain.batch()).loss], list(module.parameters()), scale=scale)
            for scale in (1.0, 1024.0)
        )
        torch.testing.assert_close(scaled, plain)

    def test_of_a_term_that_the_student_does_not_reach_is_0(self):
        module = _Plain()
        other = nn.Parameter(torch.ones(()))
        found = gradient_norms([other * 2, torch.tensor(3.0)], list(module.parameters()))
        assert found.tolist() == [0, 0]

    def test_of_a_broken_term_say_so_and_the_run_goes_on(self):
        module = _Plain()
        module.broken = True
        given = config(epochs=1, diagnoses=1)
        logged: list[dict[str, Any]] = []
        running = Trainer(module, module, RandomLoader(), given, device=CPU, seed=0)
        running.fit(Listener(log=logged.append))
        assert running.bad_steps == 2
        assert math.isnan(seen(logged)[0]["grad_norms"]["task"])


class _Plain(nn.Module):
    """A linear classifier of mean colours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 4)
        self.broken = False

    def forward(self, batch: Batch) -> StepOutput:
        logits: Tensor = self.head(batch.images.mean(dim=(2, 3)))
        assert batch.labels is not None
        loss = nn.functional.cross_entropy(logits, batch.labels)
        return StepOutput(logits, {"task": loss * (float("nan") if self.broken else 1.0)})

    @staticmethod
    def batch() -> Batch:
        return next(RandomLoader().batches(0))


def _norm_on_a_rank() -> Tensor:
    """Of ranks with different numbers of images: five and three."""
    part = slice(0, 5) if torch.distributed.get_rank() == 0 else slice(5, 8)
    module, batch = _Plain(), _Plain.batch().rows(part)
    return gradient_norms([module(batch).loss], list(module.parameters()), share=len(batch) / 8)


class TestTime:
    def test_of_what_is_done_apart_is_a_share_of_the_step_without_the_look(self):
        method = build("kd")

        @contextmanager
        def watch(stopwatch: Stopwatch) -> Iterator[None]:
            def slow(*_: object) -> None:
                stopwatch.start()
                time.sleep(0.2)
                stopwatch.stop()

            hook = method.teacher.model.register_forward_pre_hook(slow)
            yield
            hook.remove()

        logged: list[dict[str, Any]] = []
        given = config(epochs=1, diagnoses=1)
        running = Trainer(method, method.student, RandomLoader(), given, device=CPU, seed=0)
        running.fit(Listener(log=logged.append, watch=watch))
        (line,) = seen(logged)
        assert 0.2 < line["step_seconds"]
        assert 0.5 < line["teacher_share"] < 1
        assert line["teacher_share"] * line["step_seconds"] == pytest.approx(0.2, abs=0.05)

    def test_of_no_teacher_is_not_known(self):
        _, logged = train(build("control"), 1)
        assert seen(logged)[0]["teacher_share"] is None
        assert seen(logged)[0]["epoch"] == 2


def test_it_is_left_out_where_steps_are_compiled(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: None)
    monkeypatch.setattr("anykd.engine.parallel._require_compiler", lambda device: None)
    _, logged = train(build("control"), 10, compile=True)
    assert not seen(logged)
