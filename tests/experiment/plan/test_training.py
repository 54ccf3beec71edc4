"""Findings about the method and the settings of training."""

import pytest
import torch
from torch import nn

from anykd.engine import TrainConfig
from anykd.engine.optim import Average
from anykd.experiment.plan.findings.training import (
    batch_in_parts,
    rising_learning_rate,
    slow_average,
    small_batch,
    untrained_classifier,
)
from anykd.methods import METHODS, build_methods, read_tables
from tests.methods.small import build_small, small_pair


class TestAverage:
    @pytest.mark.parametrize("warm_up", [False, True])
    @pytest.mark.parametrize("num_steps", [20, 41])
    def test_that_lags_behind_is_told_by_how_much(self, warm_up, num_steps):
        config = TrainConfig(ema_decay=0.99, ema_warmup=warm_up)
        (finding,) = slow_average(config, num_steps=num_steps)
        assert (finding.severity, finding.code) == ("warning", "slow-average")
        assert ("ema_warmup = true" in finding.remedy) == (not warm_up)
        # A weight that is 1 in the first half of the run, and 0 in the second.
        weight = nn.Linear(1, 1)
        average = Average(weight, config)
        for step in range(1, num_steps + 1):
            nn.init.constant_(weight.weight, float(step <= num_steps // 2))
            average.update(weight, step=step, moved=torch.ones(()))
        assert f"{average.module.weight.item():.0%} of the average" in finding.message

    @pytest.mark.parametrize(
        ("num_steps", "options"),
        [
            (100, {}),
            (100, {"ema_decay": 0.99996}),
            (100, {"ema_decay": 0.9, "ema_warmup": False}),
            (200_000, {"ema_decay": 0.99996, "ema_warmup": False}),
        ],
    )
    def test_that_works_is_not_told(self, num_steps, options):
        assert not list(slow_average(TrainConfig(**options), num_steps=num_steps))


class TestBatch:
    @pytest.mark.parametrize("name", ["fbt", "rkd", "cc", "dist", "rsd"])
    def test_too_small_to_compare_images_is_told(self, name):
        method = build_small(name, *small_pair("cnn", "vit"))
        (finding,) = small_batch(method, 15)
        assert (finding.severity, finding.code) == ("warning", "small-batch")
        assert "15 are few" in finding.message
        assert not list(small_batch(method, 16))

    @pytest.mark.parametrize("name", sorted(set(METHODS) - {"fbt", "rkd", "cc", "dist", "rsd"}))
    def test_of_two_is_enough_where_images_stand_alone(self, name):
        assert not list(small_batch(build_small(name, *small_pair("cnn", "vit")), 2))

    @pytest.mark.parametrize(
        ("name", "options"), [("fbt", {"info_nce_weight": 0}), ("dist", {"intra_weight": 0})]
    )
    def test_is_enough_where_the_comparing_term_is_off(self, name, options):
        assert not list(small_batch(build_small(name, *small_pair("cnn", "vit"), **options), 2))

    def test_is_judged_by_every_part_of_a_combination(self):
        student, teacher = small_pair("cnn", "vit")
        tables = read_tables([{"name": "kd"}, {"name": "rkd"}])
        method = build_methods(tables, student, [(teacher, 1.0)])
        assert [finding.code for finding in small_batch(method, 8)] == ["small-batch"]


class TestBatchInParts:
    def test_is_told_where_images_are_compared(self):
        method = build_small("rkd", *small_pair("cnn", "vit"))
        (finding,) = batch_in_parts(method, TrainConfig(batch_size=128, grad_accum=4))
        assert (finding.severity, finding.code) == ("note", "batch-in-parts")
        assert "a part of 32, not of the batch of 128" in finding.message
        assert not list(batch_in_parts(method, TrainConfig(batch_size=128)))

    def test_is_nothing_where_images_stand_alone(self):
        method = build_small("kd", *small_pair("cnn", "vit"))
        assert not list(batch_in_parts(method, TrainConfig(grad_accum=4)))


class TestClassifier:
    def test_that_nothing_trains_is_told(self):
        method = build_small("rsd", *small_pair("cnn", "vit"), task_weight=0)
        (finding,) = untrained_classifier(method)
        assert (finding.severity, finding.code) == ("warning", "untrained-classifier")

    def test_that_labels_train_is_not_told(self):
        assert not list(untrained_classifier(build_small("rsd", *small_pair("cnn", "vit"))))


class TestLearningRate:
    def test_that_rises_to_the_end_is_told(self):
        config = TrainConfig(peak_lr=1e-4, min_lr=1e-3)
        (finding,) = rising_learning_rate(config)
        assert finding.code == "rising-learning-rate"

    @pytest.mark.parametrize(
        "options", [{}, {"peak_lr": 1e-4, "min_lr": 1e-3, "schedule": "constant"}]
    )
    def test_that_does_not_is_not_told(self, options):
        assert not list(rising_learning_rate(TrainConfig(**options)))
