import contextlib
import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.optim import list_optimizers
from torch import Tensor, nn

from anykd.data import AugmentConfig, TrainLoader, TrainViews
from anykd.data.bundled import SyntheticReader
from anykd.engine import (
    Listener,
    LossScale,
    Parallel,
    Stepper,
    Trainer,
    newest_checkpoint,
    save_checkpoint,
)
from anykd.engine.randomness import seed_everything
from anykd.errors import CheckpointError
from anykd.methods import Method
from anykd.types import Batch, StepOutput
from tests.engine.tiny import RandomLoader, cnn, config, method, trainer, vit

CPU = torch.device("cpu")


class InterruptionError(Exception):
    """The process is taken away."""


def interrupt_after(running: Trainer, steps: int, folder: Path) -> None:
    if running.all_steps_done == steps:
        save(running, folder)
        raise InterruptionError


class Bowl(nn.Module):
    """Half the squared norm of (3, 4): the gradient is the vector itself, of norm 5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, batch: Batch) -> StepOutput:
        return StepOutput(torch.zeros(1, 2), {"bowl": self.weight.square().sum() / 2})


class Drawing(Bowl):
    """Draws from every generator that a user's model may draw from."""

    def forward(self, batch: Batch) -> StepOutput:
        drawn = random.random() + np.random.rand() + torch.rand(()).item()
        return StepOutput(torch.zeros(1, 2), {"drawn": self.weight.square().sum() * drawn})


class Line(nn.Module):
    """Parameters of one, two and four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=8)
        self.head = nn.Linear(4, 4)

    def forward(self, batch: Batch) -> StepOutput:
        assert batch.labels is not None
        logits = self.head(self.conv(batch.images).relu().mean(dim=(2, 3)))
        return StepOutput(logits, {"task": F.cross_entropy(logits, batch.labels)})


def optimizers() -> list[str]:
    """Every optimiser of timm's that needs no GPU."""
    names = [str(name) for name in list_optimizers()]
    return [name for name in names if not name.startswith(("fused", "bnb", "adahessian"))]


def one_step(module: nn.Module, **options: Any) -> None:
    stepper = Stepper(
        Parallel(module, module),
        module,
        torch.optim.SGD(module.parameters(), lr=1.0),
        precision=contextlib.nullcontext,
        scale=LossScale(),
        **options,
    )
    stepper.take(Batch(torch.zeros(1, 3, 2, 2)), key=(0,))


def fit(running: Trainer) -> list[dict[str, Any]]:
    logged: list[dict[str, Any]] = []
    running.fit(Listener(log=logged.append))
    return logged


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class TestStep:
    def test_takes_the_step_of_the_gradient(self):
        bowl = Bowl()
        one_step(bowl)
        assert bowl.weight.tolist() == [0, 0]

    def test_clips_the_norm_of_the_whole_gradient(self):
        bowl = Bowl()
        one_step(bowl, clip_grad=1.0)
        assert bowl.weight.tolist() == pytest.approx([3 - 0.6, 4 - 0.8], rel=1e-5)

    def test_does_not_stretch_a_small_gradient(self):
        bowl = Bowl()
        one_step(bowl, clip_grad=50.0)
        assert bowl.weight.tolist() == [0, 0]

    def test_passes_the_clip_of_the_recipe_on(self):
        bowl = Bowl()
        options = config(optimizer="sgd", clip_grad=1e-3, peak_lr=0.1, epochs=1)
        Trainer(bowl, bowl, RandomLoader(), options, device=CPU, seed=0).fit(Listener())
        assert (bowl.weight - torch.tensor([3.0, 4.0])).norm() < 1e-3


class TestTrainer:
    def test_calls_its_listener_after_every_step_and_epoch(self):
        steps, scored, epochs = [], [], []
        listener = Listener(
            step=lambda epoch, step: steps.append((epoch, step)),
            score=lambda running: scored.append((running.epochs_done, running.steps_done)),
            epoch=lambda running: epochs.append((running.epochs_done, running.steps_done)),
        )
        trainer(method("control", vit())).fit(listener)
        assert steps == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert scored == [(0, 2), (1, 2)]
        assert epochs == [(1, 0), (2, 0)]

    def test_logs_the_terms_and_their_sum(self):
        logged = fit(trainer(method("kd", cnn(), vit(seed=1))))
        assert [(line["epoch"], line["step"]) for line in logged] == [
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
        ]
        for line in logged:
            assert line["event"] == "step"
            assert line["loss"] == pytest.approx(line["task"] + line["kd"], rel=1e-5)

    def test_logs_the_first_and_last_step_of_an_epoch_and_each_nth(self):
        running = trainer(method("control", vit()), log_every=3, epochs=1)
        running.loader.steps_per_epoch = 8
        assert [line["step"] for line in fit(running)] == [0, 3, 6, 7]

    def test_trains_on_mixed_and_smoothed_labels(self):
        student = vit()
        before = copy.deepcopy(student)
        views = TrainViews(
            SyntheticReader(4, 8, split=0),
            num_classes=4,
            image_size=32,
            augment=AugmentConfig(preset="vit"),
            label_smoothing=0.1,
            seed=0,
        )
        loader = TrainLoader(views, batch_size=8, seed=0, workers=0)
        running = Trainer(
            method("control", student), student, loader, config(epochs=1), device=CPU, seed=0
        )
        first = fit(running)[0]

        batch = next(loader.batches(0))
        assert batch.labels is not None
        assert ((batch.labels > 0.03).sum(dim=1) == 2).any()  # an image of two classes
        log_p = before(batch.images).logits.log_softmax(dim=1)
        expected = -(batch.labels * log_p).sum(dim=1).mean().item()
        assert first["task"] == pytest.approx(expected, rel=1e-4)

    def test_dropout_follows_the_seed(self):
        def weights(seed: int) -> dict[str, Tensor]:
            running = trainer(method("control", vit(proj_drop_rate=0.3)), seed=seed)
            torch.manual_seed(torch.seed() % 1000)  # what was drawn before does not matter
            fit(running)
            return running.module.state_dict()

        assert_same(weights(0), weights(0))
        assert not torch.equal(
            weights(0)["student.model.head.weight"], weights(1)["student.model.head.weight"]
        )

    def test_leaves_the_teacher_as_it_was(self):
        teacher = cnn(seed=1)
        before = copy.deepcopy(teacher.state_dict())
        running = trainer(method("fbt", vit(), teacher), weight_decay=0.5)
        fit(running)
        assert_same(teacher.state_dict(), before)
        assert not any(part.training for part in teacher.modules())

    def test_changes_little_by_bf16_and_keeps_the_weights_in_float32(self):
        losses = {}
        for precision in ("float32", "bf16"):
            running = trainer(method("fbt", cnn(), vit(seed=1)), precision=precision)
            losses[precision] = [line["loss"] for line in fit(running)]
            assert {p.dtype for p in running.module.parameters()} == {torch.float32}
        assert losses["bf16"] != losses["float32"]
        assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.03)

    def test_changes_nothing_but_rounding_by_the_layout_of_memory(self):
        losses, layouts = [], []
        for channels_last in (True, False):
            student = cnn()
            running = trainer(method("kd", student, vit(seed=1)), channels_last=channels_last)
            losses.append([line["loss"] for line in fit(running)])
            weight = student.model.layer4[0].conv1.weight
            layouts.append(weight.is_contiguous(memory_format=torch.channels_last))
        assert layouts == [True, False]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


PAIRS = {
    "control of cnn": ("control", cnn, None),
    "ofa of cnn": ("ofa", cnn, vit),
    "fbt of cnn": ("fbt", cnn, vit),
    "fbt of vit": ("fbt", vit, cnn),
}


@pytest.fixture(params=PAIRS)
def pair(request) -> Any:
    """A function that makes the same trainer each time, with an average of the weights."""
    name, student, teacher = PAIRS[request.param]

    def make() -> Trainer:
        options = {"drop_path_rate": 0.2} if student is vit else {"drop_rate": 0.2}
        module = method(name, student(**options), None if teacher is None else teacher(seed=1))
        return trainer(module, ema_decay=0.99, clip_grad=5.0)

    return make


def save(running: Trainer, folder: Path) -> None:
    tensors, plain = running.state()
    save_checkpoint(folder, running.all_steps_done, tensors, plain)


def load(running: Trainer, folder: Path) -> Trainer:
    found = newest_checkpoint(folder)
    assert found is not None
    running.load(found, found.state)
    return running


class TestState:
    @pytest.mark.parametrize(("event", "at"), [("step", 1), ("step", 2), ("epoch", 2), ("step", 3)])
    def test_goes_on_bit_for_bit_from_a_checkpoint(self, pair, tmp_path, event, at):
        straight, first, second = pair(), pair(), pair()
        lines = fit(straight)
        listener = Listener()
        setattr(listener, event, lambda *values: interrupt_after(first, at, tmp_path))
        with pytest.raises(InterruptionError):
            first.fit(listener)
        with torch.no_grad():  # nothing but the checkpoint may decide what follows
            for parameter in second.module.parameters():
                parameter.add_(1.0)
        seed_everything(99)
        logged = fit(load(second, tmp_path))

        assert (second.epochs_done, second.steps_done) == (2, 0)
        assert without_times(logged) == without_times(lines[at:])
        assert_same(second.state()[0], straight.state()[0])
        assert second.state()[1] == straight.state()[1]

    def test_holds_what_the_method_trains_beside_the_student(self, pair):
        running = pair()
        tensors, _ = running.state()
        assert {f"module.{name}" for name, _ in running.module.named_parameters()} <= set(tensors)
        assert {f"ema.{name}" for name in running.averaged.state_dict()} <= set(tensors)

    def test_holds_nothing_of_the_teacher(self, pair):
        running = pair()
        fit(running)
        assert isinstance(running.module, Method)
        if running.module._teacher is None:
            pytest.skip("control has no teacher")
        saved = list(running.state()[0].values())
        for name, weight in running.module.teacher.model.state_dict().items():
            if weight.ndim < 2:
                continue  # norms of fresh models are all alike
            copies = [t for t in saved if t.shape == weight.shape and torch.equal(t, weight)]
            assert not copies, name

    def test_of_another_model_is_told(self, tmp_path):
        save(trainer(method("control", vit())), tmp_path)
        with pytest.raises(
            CheckpointError, match=r"is of another model: module\.student"
        ) as caught:
            load(trainer(method("control", vit(embed_dim=16))), tmp_path)
        assert caught.value.hint

    def test_code_that_draws_from_any_generator_goes_on_bit_for_bit(self, tmp_path):
        def make() -> Trainer:
            module = Drawing()
            return Trainer(module, module, RandomLoader(), config(), device=CPU, seed=3)

        straight = make()
        lines = fit(straight)
        first = make()
        with pytest.raises(InterruptionError):
            first.fit(Listener(step=lambda epoch, step: interrupt_after(first, 3, tmp_path)))
        logged = fit(load(make(), tmp_path))
        assert without_times(logged) == without_times(lines[3:])
        drawn = [line["drawn"] for line in lines]
        assert len(set(drawn)) == len(drawn)  # every step draws anew

    @pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
    @pytest.mark.parametrize("name", optimizers())
    def test_of_every_optimiser_comes_back(self, name, tmp_path):
        def make() -> Trainer:
            torch.manual_seed(0)
            module = Line()
            options = config(optimizer=name, peak_lr=1e-3, epochs=4)
            return Trainer(module, module, RandomLoader(), options, device=CPU, seed=0)

        straight, first, second = make(), make(), make()
        fit(straight)
        with pytest.raises(InterruptionError):
            first.fit(Listener(step=lambda epoch, step: interrupt_after(first, 5, tmp_path)))
        fit(load(second, tmp_path))
        assert_same(dict(second.module.state_dict()), dict(straight.module.state_dict()))


class TestCheckpoints:
    def test_are_written_every_nth_step_and_asked_for_at_the_end_of_an_epoch(self):
        found = []
        running = trainer(method("control", vit()), checkpoint_every=3)
        running.loader.steps_per_epoch = 4
        note = lambda name: lambda trainer: found.append((name, trainer.all_steps_done))  # noqa: E731
        running.fit(Listener(checkpoint=note("within"), epoch=note("epoch")))
        # Step 3 and 6; not step 8, whose epoch ends there.
        assert found == [("within", 3), ("epoch", 4), ("within", 6), ("epoch", 8)]

    def test_one_is_written_before_stopping(self):
        asked = iter([False, True])
        found: list[int] = []

        def stopped() -> None:
            raise InterruptionError

        running = trainer(method("control", vit()))
        listener = Listener(
            stop=lambda: next(asked),
            checkpoint=lambda trainer: found.append(trainer.all_steps_done),
            stopped=stopped,
        )
        with pytest.raises(InterruptionError):
            running.fit(listener)
        assert found == [2]
        assert (running.epochs_done, running.steps_done) == (0, 2)  # not scored yet
