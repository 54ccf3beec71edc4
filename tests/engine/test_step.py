import contextlib
import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anykd.engine import BadStepsError, Listener, LossScale, Parallel, Stepper, Trainer
from anykd.methods import build_method
from anykd.models import FrozenTeacher
from anykd.types import Batch, StepOutput
from tests.engine.tiny import RandomLoader, cnn, config, method, trainer, vit

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


class Ill(nn.Module):
    """Breaks in the steps that it is told to, in one of several ways."""

    def __init__(self, how: str, steps: set[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)
        self.how, self.ill, self.seen = how, steps, -1

    def forward(self, batch: Batch) -> StepOutput:
        self.seen += 1
        images = batch.images
        ill = self.seen in self.ill
        if ill and self.how == "pixels":
            images = images * NAN
        logits = self.head(self.norm(images).mean(dim=(2, 3)))
        fine, other = logits.square().mean(), logits.abs().mean()
        if ill and self.how == "loss":
            other = other * INF
        if ill and self.how == "gradient":
            # The square root of 0 is 0, and its slope is infinite.
            other = other + (self.head.weight[0, 0] * 0).sqrt()
        return StepOutput(logits, {"fine": fine, "other": other})


def ill_trainer(how: str, steps: set[int], **options: Any) -> Trainer:
    module = Ill(how, steps)
    options = {"epochs": 4, "ema_decay": 0.5} | options
    return Trainer(module, module, RandomLoader(), config(**options), device=CPU, seed=0)


def copied(running: Trainer) -> tuple[dict[str, Tensor], Any]:
    tensors, plain = running.state()
    return {name: value.clone() for name, value in tensors.items()}, copy.deepcopy(plain)


class TestBadStep:
    @pytest.mark.parametrize("how", ["pixels", "loss", "gradient"])
    def test_leaves_everything_as_it_was(self, how):
        states = []
        running = ill_trainer(how, {3})
        running.fit(Listener(step=lambda epoch, step: states.append(copied(running))))
        (before, plain_before), (after, plain_after) = states[2], states[3]
        assert all(value.isfinite().all() for value in after.values())
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert (plain_before["bad_steps"], plain_after["bad_steps"]) == (0, 1)
        assert any(not torch.equal(states[4][0][name], value) for name, value in after.items())

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ("pixels", "the term fine was nan and the term other was nan"),
            ("loss", "the term other was inf"),
            ("gradient", "the gradient of head.weight was not finite"),
        ],
    )
    def test_is_named_once_and_counted(self, how, said):
        words, logged = [], []
        ill_trainer(how, {2, 3, 5}).fit(Listener(log=logged.append, warn=words.append))
        assert words == [
            f"epoch 2, step 1 was skipped: {said}",
            f"epoch 3, step 2 was skipped: {said}",
        ]
        assert [line["bad_steps"] for line in logged] == [0, 0, 1, 2, 2, 3, 3, 3]

    def test_many_in_a_row_stop_the_run_with_all_that_is_known(self):
        running = ill_trainer("loss", {2, 3, 5, 6, 7}, max_bad_steps=3)
        with pytest.raises(
            BadStepsError, match=r"3 steps in a row .* epoch 4, step 2 the term"
        ) as e:
            running.fit(Listener())
        assert "train.peak_lr" in e.value.hint
        record = e.value.record
        assert (record["epoch"], record["step"], record["bad_steps"]) == (3, 1, 5)
        assert record["indices"] == list(range(8, 16))
        assert record["terms"][0]["other"] == "inf"
        assert float(record["terms"][0]["fine"]) > 0
        json.dumps(record, allow_nan=False)

    def test_leaves_the_memories_of_crd_as_they_were(self):
        student, teacher = cnn(), FrozenTeacher(vit(seed=1))
        module = build_method("crd", student, teacher, num_samples=16, num_negatives=4)
        running = Trainer(module, student, RandomLoader(), config(epochs=2), device=CPU, seed=0)
        states = []

        def note(epoch: int, step: int) -> None:
            states.append(copied(running)[0])
            if len(states) == 2:
                student.model.conv1.register_forward_pre_hook(lambda m, x: (x[0] * NAN,))

        running.fit(Listener(step=note))
        assert running.bad_steps == 2
        torch.testing.assert_close(
            states[3]["module.student_memory"], states[1]["module.student_memory"]
        )
        assert states[3]["module.teacher_memory"].isfinite().all()


class TestBehind:
    """What a GPU's host does, which learns some steps late what came of one."""

    @pytest.mark.parametrize("optimizer", ["adamw", "lamb"])  # skips on the device, and not
    @pytest.mark.parametrize("how", ["pixels", "loss", "gradient"])
    def test_comes_to_the_same(self, how, optimizer):
        found = []
        for behind in (0, 2, 5):
            running = ill_trainer(how, {2, 3, 5, 7}, optimizer=optimizer, checkpoint_every=1)
            running.in_flight.behind = behind
            logged, words, kept = [], [], []
            running.fit(
                Listener(
                    log=logged.append,
                    warn=words.append,
                    checkpoint=lambda trainer, kept=kept: kept.append(copied(trainer)),
                )
            )
            speeds = [line.pop("images_per_second") for line in logged]
            assert len(speeds) == 8
            found.append((copied(running), kept, logged, words))
        for other in found[1:]:
            assert repr(other[2:]) == repr(found[0][2:])  # the norms of skipped steps are NaN
            for (tensors, plain), (expected, plain_too) in zip(
                [other[0], *other[1]], [found[0][0], *found[0][1]], strict=True
            ):
                torch.testing.assert_close(tensors, expected, rtol=0, atol=0)
                assert plain == plain_too

    def test_stops_after_too_many_in_a_row_and_no_later_than_that(self):
        running = ill_trainer("loss", set(range(2, 99)), epochs=9, max_bad_steps=4, log_every=99)
        running.loader.steps_per_epoch = 20  # pyright: ignore[reportAttributeAccessIssue]
        running.in_flight.behind = 2
        steps = []
        with pytest.raises(BadStepsError, match="epoch 1, step 6"):
            running.fit(Listener(step=lambda epoch, step: steps.append(step)))
        assert steps[-1] == 5 + 2 - 1

    def test_a_request_to_stop_is_heard_soon_and_nothing_is_lost(self):
        running = ill_trainer("loss", {1}, epochs=9, log_every=99)
        running.loader.steps_per_epoch = 20  # pyright: ignore[reportAttributeAccessIssue]
        running.in_flight.behind = 2
        asked, kept = iter([False] * 4 + [True] * 99), []

        def stopped() -> None:
            raise KeyboardInterrupt

        listener = Listener(
            stop=lambda: next(asked),
            checkpoint=lambda trainer: kept.append((trainer.steps_done, trainer.bad_steps)),
            stopped=stopped,
        )
        with pytest.raises(KeyboardInterrupt):
            running.fit(listener)
        assert kept == [(7, 1)]


PARTS = {
    "control": {},
    "kd": {},
    "dkd": {},
    "ofa": {},
    "fitnet": {},
    "dist": {"intra_weight": 0.0},  # its other term compares images
}


class TestGradAccum:
    @pytest.mark.parametrize("name", PARTS)
    @pytest.mark.parametrize("parts", [2, 3, 8])
    def test_equals_the_large_batch(self, name, parts):
        found = []
        for grad_accum in (1, parts):
            teacher = FrozenTeacher(vit(seed=1, embed_dim=16))
            torch.manual_seed(1)
            module = build_method(name, vit(), teacher, **PARTS[name])
            options = config(grad_accum=grad_accum, optimizer="sgd", peak_lr=0.1, epochs=1)
            running = Trainer(module, module.student, RandomLoader(), options, device=CPU, seed=0)
            logged: list[dict[str, Any]] = []
            running.fit(Listener(log=logged.append))
            found.append((module.state_dict(), logged))
        (expected, lines), (weights, others) = found
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
        for line, other in zip(lines, others, strict=True):
            assert other["loss"] == pytest.approx(line["loss"], rel=1e-5)
            assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-4)

    def test_runs_no_more_images_at_once_than_a_part_has(self):
        sizes = []
        running = trainer(method("control", vit()), grad_accum=4)
        running.averaged.register_forward_pre_hook(lambda m, x: sizes.append(len(x[0].images)))
        running.fit(Listener())
        assert sizes == [2] * 16

    def test_has_as_many_parts_as_images_at_most(self):
        running = trainer(method("control", vit()), grad_accum=100)
        running.fit(Listener())
        assert running.bad_steps == 0


class Steep(nn.Module):
    """Its scaled gradient overflows in half precision above a scale."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))
        self.largest = largest

    def forward(self, batch: Batch) -> StepOutput:
        half = _Half.apply(self.weight, self.largest)
        return StepOutput(torch.zeros(1, 2), {"steep": half.sum() * 2})


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, largest: float) -> Tensor:
        ctx.largest = largest
        return weight.clone()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grad_outputs
        return torch.where(gradient.abs() > ctx.largest, INF, gradient), None


def stepper(module: nn.Module, scale: LossScale) -> Stepper:
    return Stepper(
        Parallel(module, module),
        module,
        torch.optim.SGD(module.parameters(), lr=0.5),
        precision=contextlib.nullcontext,
        scale=scale,
    )


class TestLossScale:
    def test_falls_until_gradients_are_finite_and_leaves_the_step_as_without(self):
        module, scale = Steep(largest=20_000), LossScale.for_precision("fp16")
        taking = stepper(module, scale)
        batch = Batch(torch.zeros(1, 3, 2, 2))
        outcomes, norms = [], []
        for number in range(4):
            taken = taking.take(batch, key=(number,))
            outcomes.append(taking.outcome(taken, taken.report.tolist()))
            norms.append(taken.grad_norm)
        assert [one.overflowed for one in outcomes] == [True, True, True, False]
        assert scale.value == 8192.0
        assert all(one.bad is None for one in outcomes)
        assert module.weight.tolist() == [3.0 - 0.5 * 2]  # as if nothing had been scaled
        assert norms[-1] == pytest.approx(2.0)

    def test_at_one_an_infinite_gradient_is_a_bad_step(self):
        scale = LossScale(value=1.0, enabled=True)
        taking = stepper(Steep(largest=1.0), scale)
        taken = taking.take(Batch(torch.zeros(1, 3, 2, 2)), key=(0,))
        outcome = taking.outcome(taken, taken.report.tolist())
        assert outcome.bad is not None
        assert not outcome.overflowed

    def test_steps_of_one_factor_halve_it_once(self):
        scale = LossScale(value=8.0, enabled=True)
        assert [scale.overflowed(8.0) for _ in range(3)] == [True, True, True]
        assert scale.value == 4.0

    def test_doubles_after_many_good_steps(self):
        scale = LossScale(value=4.0, enabled=True)
        for _ in range(LossScale.EVERY - 1):
            scale.succeeded()
        assert scale.value == 4
        scale.succeeded()
        assert (scale.value, scale.good_steps) == (8, 0)

    def test_is_not_there_in_other_precisions(self):
        scale = LossScale.for_precision("bf16")
        scale.succeeded()
        assert (scale.value, scale.good_steps, scale.overflowed(1.0)) == (1, 0, False)

    def test_comes_back_with_a_checkpoint(self):
        running = ill_trainer("loss", set(), precision="fp16")
        running.scale.value, running.scale.good_steps = 128.0, 7
        assert running.state()[1]["loss_scale"] == [128.0, 7]

    def test_trains_as_float32_does_but_for_rounding(self):
        losses = {}
        for precision in ("float32", "fp16"):
            running = trainer(method("fbt", cnn(), vit(seed=1)), precision=precision)
            logged: list[dict[str, Any]] = []
            running.fit(Listener(log=logged.append))
            losses[precision] = [line["loss"] for line in logged]
            assert {p.dtype for p in running.module.parameters()} == {torch.float32}
            assert all(math.isfinite(loss) for loss in losses[precision])
        assert losses["fp16"] != losses["float32"]
        assert losses["fp16"] == pytest.approx(losses["float32"], rel=0.03)
