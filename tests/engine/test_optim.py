import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from anykd.engine import Listener, TrainConfig
from anykd.engine.optim import Average, build_optimizer, learning_rate
from anykd.errors import RecipeError
from anykd.methods import Method
from anykd.models import create_staged
from tests.engine.tiny import cnn, method, trainer, vit


def names_by_decay(module: Method, **options) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of those that do not."""
    optimizer = build_optimizer(module, TrainConfig(**options))
    names = {parameter: name for name, parameter in module.named_parameters()}
    decayed: set[str] = set()
    kept: set[str] = set()
    for group in optimizer.param_groups:
        target = decayed if group["weight_decay"] else kept
        target |= {names[parameter] for parameter in group["params"]}
    return decayed, kept


def test_sgd_without_momentum_is_the_plain_step():
    weight = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(
        weight, TrainConfig(optimizer="sgd", momentum=0, peak_lr=0.5, weight_decay=0)
    )
    before = weight.weight.detach().clone()
    for _ in range(2):
        weight.weight.grad = torch.tensor([[1.0, -2.0]])
        optimizer.step()
    torch.testing.assert_close(weight.weight.detach(), before - torch.tensor([[1.0, -2.0]]))


def test_second_derivatives_are_refused_in_words():
    with pytest.raises(RecipeError, match="adahessian needs second derivatives"):
        build_optimizer(nn.Linear(2, 1), TrainConfig(optimizer="adahessian"))


class TestLearningRate:
    def test_is_that_of_timms_cosine_without_offset(self):
        config = TrainConfig(epochs=12, warmup_epochs=3, peak_lr=0.1, min_lr=1e-3, warmup_lr=1e-4)
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=config.peak_lr)
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=12,
            lr_min=1e-3,
            warmup_t=3,
            warmup_lr_init=1e-4,
            warmup_prefix=False,
        )
        for epoch in range(12):
            scheduler.step(epoch)
            expected = optimizer.param_groups[0]["lr"]
            assert learning_rate(config, epoch) == pytest.approx(expected, rel=1e-9)

    def test_warms_up_and_falls_within_an_epoch_by_hand(self):
        config = TrainConfig(epochs=10, warmup_epochs=2, peak_lr=1.0, min_lr=0.2, warmup_lr=0.0)
        assert learning_rate(config, 0.5) == pytest.approx(0.25)
        assert learning_rate(config, 5) == pytest.approx(0.6)
        assert learning_rate(config, 2.5) == pytest.approx(0.6 + 0.4 * math.sqrt(0.5))

    def test_starts_at_the_peak_without_warm_up(self):
        config = TrainConfig(epochs=10, warmup_epochs=0, peak_lr=0.3)
        assert learning_rate(config, 0) == pytest.approx(0.3)

    def test_falls_in_steps(self):
        config = TrainConfig(
            epochs=9, warmup_epochs=0, schedule="step", peak_lr=1.0, decay_epochs=3, decay_rate=0.1
        )
        rates = [learning_rate(config, epoch) for epoch in (0, 2.9, 3, 5.5, 6)]
        assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])

    def test_stays_constant_after_warm_up(self):
        config = TrainConfig(epochs=9, warmup_epochs=1, schedule="constant", peak_lr=0.5)
        assert [learning_rate(config, epoch) for epoch in (1, 4, 8.9)] == [0.5, 0.5, 0.5]

    @pytest.mark.parametrize(
        ("update", "points"), [("step", [0, 0.5, 1, 1.5]), ("epoch", [0, 0, 1, 1])]
    )
    def test_moves_with_every_step_or_once_an_epoch(self, update, points):
        running = trainer(method("control", vit()), lr_update=update)
        logged: list[float] = []
        running.fit(Listener(log=lambda values: logged.append(values["lr"])))
        assert logged == [learning_rate(running.config, point) for point in points]


class TestOptimizer:
    def test_names_what_is_nearest_to_an_unknown_one(self):
        with pytest.raises(RecipeError, match="no optimiser is called 'adamww'") as caught:
            build_optimizer(nn.Linear(1, 1), TrainConfig(optimizer="adamww"))
        assert "adamw" in caught.value.hint

    def test_sgd_has_nesterov_momentum(self):
        config = TrainConfig(optimizer="sgd", momentum=0.8)
        (group, *_) = build_optimizer(nn.Linear(2, 2), config).param_groups
        assert (group["nesterov"], group["momentum"]) == (True, 0.8)

    def test_holds_every_trainable_parameter_once(self):
        module = method("fbt", cnn(), vit(seed=1))
        decayed, kept = names_by_decay(module)
        assert not decayed & kept
        assert decayed | kept == {n for n, p in module.named_parameters() if p.requires_grad}

    def test_vectors_do_not_decay_and_matrices_do(self):
        module = method("ofa", cnn(), vit(seed=1))
        decayed, kept = names_by_decay(module)
        for name, parameter in module.named_parameters():
            assert name in (kept if parameter.ndim <= 1 else decayed)

    def test_positions_and_tokens_of_a_vit_do_not_decay(self):
        decayed, kept = names_by_decay(method("kd", vit(), cnn(seed=1)))
        assert {"student.model.pos_embed", "student.model.cls_token"} <= kept
        assert "student.model.head.weight" in decayed

    def test_position_tables_of_a_swin_and_of_l2g_do_not_decay(self):
        student = create_staged(
            "swin_pico_patch4_window7_224", num_classes=4, image_size=64, embed_dim=16
        )
        decayed, kept = names_by_decay(method("fbt", student, cnn(seed=1)))
        tables = {name for name in decayed | kept if "relative_position_bias_table" in name}
        assert any(name.startswith("student.") for name in tables)
        assert any(name.startswith("l2g.") for name in tables)
        assert tables <= kept

    def test_temperatures_and_tokens_of_fbt_do_not_decay(self):
        _, kept = names_by_decay(method("fbt", cnn(), vit(seed=1)))
        assert {"l2g.prefix", "l2g.position", "log_temperatures.teacher_student"} <= kept


class TestEma:
    @pytest.mark.parametrize("warmup", [True, False])
    def test_is_the_average_by_hand(self, warmup):
        model = nn.Linear(1, 1, bias=False)
        ema = Average(model, TrainConfig(ema_decay=0.9, ema_warmup=warmup))
        expected = 0.0
        for step in range(1, 6):
            nn.init.constant_(model.weight, float(step**2))
            ema.update(model, step=step, moved=torch.ones(()))
            decay = min(0.9, 1 - step ** (-2 / 3)) if warmup else 0.9 * (step > 1)
            expected = decay * expected + (1 - decay) * step**2
            assert ema.module.weight.item() == pytest.approx(expected)

    def test_is_made_only_where_it_is_asked_for(self):
        assert trainer(method("control", vit())).ema is None

    @pytest.mark.parametrize("warmup", [True, False])
    def test_is_timms(self, warmup):
        config = TrainConfig(ema_decay=0.9, ema_warmup=warmup)
        model = cnn()
        own, timms = Average(model, config), ModelEmaV3(model, decay=0.9, use_warmup=warmup)
        for step in range(1, 5):
            with torch.no_grad():
                for value in model.state_dict().values():
                    value.add_(step)  # whole numbers, such as counts of batches, too
            own.update(model, step=step, moved=torch.ones(()))
            timms.update(model, step=step)
        torch.testing.assert_close(own.module.state_dict(), timms.module.state_dict())

    def test_leaves_masks_of_minus_infinity_what_they_are(self):
        model = nn.Linear(1, 1)
        model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        own = Average(model, TrainConfig(ema_decay=0.5))
        own.update(model, step=3, moved=torch.ones(()))
        assert own.module.mask.tolist() == [0.0, -math.inf]

    def test_stays_where_it_is_in_a_step_that_was_skipped(self):
        model = nn.Linear(2, 2)
        own = Average(model, TrainConfig(ema_decay=0.5, ema_warmup=False))
        before = own.module.weight.clone()
        nn.init.constant_(model.weight, 7.0)
        own.update(model, step=3, moved=torch.zeros(()))
        assert torch.equal(own.module.weight, before)

    def test_follows_fast_at_first(self):
        student = vit()
        running = trainer(method("control", student), ema_decay=0.99996, peak_lr=0.01)
        start = student.model.head.weight.detach().clone()
        running.fit(Listener())
        assert running.ema is not None
        average = running.ema.module.state_dict()["model.head.weight"]
        now = student.model.head.weight.detach()
        assert (now - average).norm() < 0.7 * (now - start).norm()


class TestFused:
    @pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum", "adagrad"])
    def test_moves_as_one_parameter_after_the_other(self, name):
        # Convolutions lie in channels-last layout, and their gradients as they do.
        weights = []
        for fused in (True, False):
            running = trainer(method("control", cnn()), optimizer=name, peak_lr=0.01, epochs=1)
            for group in running.optimizer.param_groups:
                assert group["fused"]
                group["fused"] = fused
            running.stepper._skips_on_device = fused
            running.fit(Listener())
            weights.append(running.module.state_dict())
        torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum", "adagrad"])
    def test_leaves_no_trace_of_a_first_step_that_was_skipped(self, name):
        weights = []
        for skipped in (1, 0):
            torch.manual_seed(0)
            model = nn.Linear(64, 64)
            options = TrainConfig(optimizer=name, peak_lr=0.1, weight_decay=0.1)
            optimizer = build_optimizer(model, options)
            for bad in [1] * skipped + [0, 0]:
                # What was freed lies in memory that comes next, as in a real run.
                spoilt = [torch.full((64, 64), 1e30), torch.full((64,), 1e30)]
                del spoilt
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, math.inf if bad else 1.0)
                optimizer.found_inf = torch.tensor(float(bad))  # pyright: ignore
                optimizer.step()
            weights.append(model.state_dict())
        torch.testing.assert_close(*weights)

    @pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum", "adagrad"])
    def test_takes_parameters_that_get_a_gradient_late(self, name):
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        model = nn.Sequential(first, second)
        optimizer = build_optimizer(model, TrainConfig(optimizer=name, peak_lr=0.1))
        for late in (False, True):
            for parameter in (model if late else first).parameters():
                parameter.grad = torch.ones_like(parameter)
            before = second.weight.clone()
            optimizer.step()
            assert torch.equal(second.weight, before) is not late

    def test_is_not_saved(self):
        # Sharded, as a run may be that goes on, not every optimiser can be fused.
        running = trainer(method("control", cnn()), optimizer="sgd")
        running.fit(Listener())
        options = repr(running.state()[1]["optimizer"]["options"])
        assert "'lr'" in options
        assert "fused" not in options

    def test_is_not_asked_of_optimisers_without(self):
        running = trainer(method("control", cnn()), optimizer="lamb")
        assert not running.stepper._skips_on_device
        running.fit(Listener())
