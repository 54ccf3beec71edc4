import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anykd.data import AugmentConfig, TrainLoader
from anykd.data.bundled import SyntheticReader
from anykd.engine import Listener, Trainer, load_checkpoint, save_checkpoint
from anykd.engine.trainer import train_epoch
from anykd.errors import DataError
from anykd.methods import Method
from anykd.types import Batch, StepOutput
from tests.engine.tiny import RandomLoader, cnn, config, method, trainer, vit

CPU = torch.device("cpu")


class InterruptionError(Exception):
    """The process is taken away."""


class Bowl(nn.Module):
    """Half the squared norm of (3, 4): the gradient is the vector itself, of norm 5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, batch: Batch) -> StepOutput:
        return StepOutput(torch.zeros(1, 2), {"bowl": self.weight.square().sum() / 2})


class Breaking(Bowl):
    """A second term is infinite from the third step on."""

    steps = 0

    def forward(self, batch: Batch) -> StepOutput:
        self.steps += 1
        scale = float("inf") if self.steps > 2 else 1.0
        terms = {"fine": self.weight.sum(), "broken": self.weight.sum() * scale}
        return StepOutput(torch.zeros(1, 2), terms)


def one_step(module: nn.Module, **options: Any) -> None:
    train_epoch(
        module,
        [Batch(torch.zeros(1, 3, 2, 2))],
        torch.optim.SGD(module.parameters(), lr=1.0),
        set_lr=lambda step: 1.0,
        precision=lambda: torch.enable_grad(),
        after_step=lambda *values: None,
        **options,
    )


def fit(running: Trainer) -> list[dict[str, Any]]:
    logged: list[dict[str, Any]] = []
    running.fit(Listener(log=logged.append))
    return logged


def tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class TestTrainEpoch:
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
        steps, epochs = [], []
        listener = Listener(
            step=lambda epoch, step: steps.append((epoch, step)),
            epoch=lambda running: epochs.append(running.epochs_done),
        )
        trainer(method("control", vit())).fit(listener)
        assert steps == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert epochs == [1, 2]

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
        loader = TrainLoader(
            SyntheticReader(4, 8, split=0),
            num_classes=4,
            image_size=32,
            batch_size=8,
            augment=AugmentConfig(preset="vit"),
            label_smoothing=0.1,
            seed=0,
            workers=0,
        )
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

    def test_stops_where_a_term_is_no_number_and_names_it(self):
        module = Breaking()
        options = config(epochs=3)
        running = Trainer(module, module, RandomLoader(), options, device=CPU, seed=0)
        with pytest.raises(
            DataError, match=r"^loss, broken became .* in epoch 1, step 0$"
        ) as caught:
            running.fit(Listener())
        assert "train.peak_lr" in caught.value.hint

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


class TestState:
    def test_goes_on_bit_for_bit_from_a_checkpoint(self, pair, tmp_path):
        def stop(running: Trainer) -> None:
            if running.epochs_done == 1:
                raise InterruptionError

        straight, first, second = pair(), pair(), pair()
        fit(straight)
        with pytest.raises(InterruptionError):
            first.fit(Listener(epoch=stop))
        save_checkpoint(tmp_path / "last.pt", first.state_dict())
        with torch.no_grad():  # nothing but the checkpoint may decide what follows
            for parameter in second.module.parameters():
                parameter.add_(1.0)
        second.load_state_dict(load_checkpoint(tmp_path / "last.pt"))
        fit(second)

        assert second.epochs_done == 2
        assert_same(second.state_dict(), straight.state_dict())

    def test_holds_what_the_method_trains_beside_the_student(self, pair):
        running = pair()
        state = running.state_dict()
        assert set(dict(running.module.named_parameters())) <= set(state["module"])
        assert set(running.averaged.state_dict()) == set(state["ema"])

    def test_holds_nothing_of_the_teacher(self, pair):
        running = pair()
        fit(running)
        assert isinstance(running.module, Method)
        if running.module._teacher is None:
            pytest.skip("control has no teacher")
        saved = list(tensors(running.state_dict()))
        for name, weight in running.module.teacher.model.state_dict().items():
            if weight.ndim < 2:
                continue  # norms of fresh models are all alike
            copies = [t for t in saved if t.shape == weight.shape and torch.equal(t, weight)]
            assert not copies, name
