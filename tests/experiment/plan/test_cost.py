"""What a plan measures, and that measuring leaves no trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anykd.engine import StopSignals
from anykd.experiment import load_recipe
from anykd.experiment.assemble import Parts, assemble
from anykd.experiment.plan.cache import cache_size
from anykd.experiment.plan.cost import measure_cost
from anykd.experiment.plan.make import preview
from anykd.experiment.plan.memory import bytes_of, kept_for_backward, optimizer_bytes
from anykd.experiment.running import Running
from anykd.methods import METHODS
from anykd.progress import Progress
from anykd.rundir import RunDir
from tests.experiment.results import assert_same_run
from tests.experiment.runs import CNN, DATA, train_vit


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return train_vit(tmp_path_factory.mktemp("cost") / "teacher")


def parts_of(
    teacher: Path, *sets: str, method: str | list[str] = "fbt", batch_size: int = 16
) -> Parts:
    values = {
        "teacher.name": str(teacher),
        "student.name": "resnet18",
        "data.source": DATA,
        "method.name": method,
        "image_size": 32,
        "train.batch_size": batch_size,
        "train.epochs": 2,
    }
    recipe = load_recipe(None, values, ["train.precision=float32", CNN, *sets])
    return assemble(recipe, torch.device("cpu"))


def everything(parts: Parts) -> dict[str, Any]:
    """All that training changes, by value.

    Python's own generator is left out: the shape checks of these tests draw from it.
    """
    state = {"module": parts.method.state_dict(), "teacher": parts.teachers[0].model.state_dict()}
    copied = {k: {n: t.clone() for n, t in tensors.items()} for k, tensors in state.items()}
    ema = parts.trainer.ema
    return copied | {
        "ema": {} if ema is None else {k: v.clone() for k, v in ema.module.state_dict().items()},
        "optimizer": len(parts.trainer.optimizer.state),
        "gradients": [name for name, p in parts.method.named_parameters() if p.grad is not None],
        "modes": [part.training for part in parts.method.modules()],
        "torch": torch.get_rng_state(),
        "numpy": str(np.random.get_state()),
    }


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("module", "teacher", "ema", "torch"):
        torch.testing.assert_close(actual.pop(name), expected.pop(name), rtol=0, atol=0)
    assert actual == expected


class TestNoTrace:
    @pytest.mark.parametrize("method", ["fbt", "crd", "pat", "ofa", ["dkd", "rsd"]])
    def test_is_left_in_anything_that_training_changes(self, teacher, method):
        # Dropout draws from torch's generator at every step.
        sets = ("train.ema_decay=0.9", "student.options.drop_rate=0.1")
        parts = parts_of(teacher, *sets, method=method)
        before = everything(parts)
        measure_cost(parts, steps=2)
        assert_equal(everything(parts), before)

    @pytest.mark.parametrize("method", ["fbt", "crd"])
    def test_is_seen_in_a_run_that_follows(self, teacher, method, tmp_path):
        for name in ("plain", "measured"):
            parts = parts_of(teacher, "augment.preset=vit", method=method)
            if name == "measured":
                measure_cost(parts, steps=2)
            Running(parts, RunDir(tmp_path / name), StopSignals(), Progress(visible=False)).start(
                force=False, brief=True
            )
        assert_same_run(tmp_path / "measured", tmp_path / "plain")


class TestCost:
    @pytest.mark.parametrize("method", [m for m in METHODS if m != "control"])
    def test_is_measured_for_every_method(self, teacher, method):
        sets = ("method.num_negatives=8",) if method == "crd" else ()
        cost = measure_cost(parts_of(teacher, *sets, method=method), steps=2)
        assert (cost.batch_size, cost.measured_batch_size, cost.measured_steps) == (16, 16, 2)
        assert cost.images_per_second == pytest.approx(16 / cost.seconds_per_step)
        assert 0 < cost.teacher_share < 1
        assert cost.memory_bytes > 0

    def test_in_parts_takes_the_memory_of_one_and_the_time_of_all(self, teacher):
        whole, parts = (
            measure_cost(parts_of(teacher, f"train.grad_accum={n}", "train.batch_size=64"), steps=2)
            for n in (1, 8)
        )
        assert (whole.measured_batch_size, parts.measured_batch_size) == (64, 8)
        assert parts.batch_size == 64
        assert parts.memory_bytes < whole.memory_bytes
        assert parts.seconds_per_step > 0.5 * whole.seconds_per_step

    def test_of_a_run_is_that_of_its_epochs(self, teacher):
        cost = measure_cost(parts_of(teacher), steps=2)
        loading = 16 / cost.loading_images_per_second
        # 64 images are 4 steps, each of which waits for its images in the same process.
        assert cost.workers == 0
        assert cost.seconds_per_epoch == pytest.approx(4 * (cost.seconds_per_step + loading))
        assert cost.seconds == pytest.approx(2 * cost.seconds_per_epoch)

    def test_with_workers_is_that_of_the_slower(self, teacher):
        cost = measure_cost(parts_of(teacher, "data.workers=2"), steps=2)
        per_step = max(cost.seconds_per_step, 16 / cost.loading_images_per_second)
        assert cost.seconds_per_epoch == pytest.approx(4 * per_step)

    def test_without_a_teacher_has_no_share_of_it(self, teacher):
        assert measure_cost(parts_of(teacher, method="control"), steps=2).teacher_share == 0

    def test_of_a_slow_step_is_measured_with_fewer_images(self, teacher, monkeypatch):
        monkeypatch.setattr("anykd.experiment.plan.steps._BUDGET", 1e-6)
        parts = parts_of(teacher, batch_size=32)
        cost = measure_cost(parts, steps=2)
        assert (cost.batch_size, cost.measured_batch_size) == (32, 8)
        monkeypatch.undo()
        whole = measure_cost(parts, steps=1)
        assert whole.measured_batch_size == 32
        assert cost.memory_bytes == pytest.approx(whole.memory_bytes, rel=0.02)

    def test_of_a_memory_of_all_images_does_not_grow_with_the_batch(self, teacher, monkeypatch):
        # CRD keeps a copy of both memories in the graph: here 2 · 1024 · 1024 float32, 8 MB.
        sets = ("data.source=synthetic:4x256", "method.embed_dim=1024", "method.num_negatives=8")
        monkeypatch.setattr("anykd.experiment.plan.steps._BUDGET", 1e-6)
        parts = parts_of(teacher, *sets, method="crd", batch_size=64)
        scaled = measure_cost(parts, steps=1)
        assert scaled.measured_batch_size == 8
        monkeypatch.undo()
        whole = measure_cost(parts, steps=1)
        assert scaled.memory_bytes == pytest.approx(whole.memory_bytes, rel=0.02)


class TestMemory:
    def test_of_what_backward_needs_is_counted_once(self):
        # exp keeps its output, and the linear layer its input; weights are there anyway.
        layer = nn.Linear(4, 6)
        images = torch.rand(10, 4, requires_grad=True)
        with kept_for_backward(layer) as kept:
            layer(images).exp().sum()
        assert kept.bytes == 4 * (10 * 4 + 10 * 6)

    def test_of_modules_and_optimisers_is_that_of_their_tensors(self):
        layer = nn.BatchNorm2d(3)
        assert bytes_of([layer]) == 4 * 12 + 8
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        layer(torch.rand(2, 3, 4, 4)).sum().backward()
        optimizer.step()
        assert optimizer_bytes(optimizer) == 2 * 4 * 6


class TestCache:
    def test_holds_what_is_read_of_every_view(self, teacher):
        size = cache_size(parts_of(teacher, method=["kd", "rkd"]))
        assert size is not None
        assert (size.images, size.views) == (64, 2)
        assert size.logits_bytes == 64 * 2 * 2 * 4
        assert size.top_k_bytes == 64 * 2 * 2 * 8
        assert size.pooled_bytes == 64 * 2 * 2 * 32
        assert size.stage_bytes == 0

    def test_holds_one_view_of_images_that_are_not_varied(self, teacher):
        size = cache_size(parts_of(teacher, "augment.preset=none", method="kd"))
        assert size is not None
        assert size.views == 1
        assert size.pooled_bytes == 0

    def test_holds_the_stages_that_are_compared(self, teacher):
        sets = ("method.stages=[2]", "method.kd_weight=0", "augment.preset=none")
        size = cache_size(parts_of(teacher, *sets, method="fitnet"))
        assert size is not None
        assert (size.logits_bytes, size.stage_bytes) == (0, 64 * 2 * 32 * 4 * 4)

    @pytest.mark.parametrize("views", [1, 5])
    def test_holds_as_many_views_as_are_asked_for(self, teacher, views):
        size = cache_size(parts_of(teacher, f"augment.num_views={views}", method="kd"))
        assert size is not None
        assert (size.views, size.logits_bytes) == (views, 64 * views * 2 * 4)

    def test_holds_no_stage_that_only_a_student_in_front_has(self, teacher):
        size = cache_size(parts_of(teacher, method="fbt"))
        assert size is not None
        assert (size.logits_bytes, size.pooled_bytes) == (64 * 2 * 2 * 4, 64 * 2 * 2 * 32)
        assert size.stage_bytes == 0

    @pytest.mark.parametrize(
        ("method", "sets", "expected"),
        [
            ("kd", (), "a cache could take the teacher's place"),
            (["ofa", "rsd"], (), "a cache could take the teacher's place"),
            (
                "fbt",
                (),
                "a cache could take the teacher's place; only its tail, stage 4 and head, "
                "runs live",
            ),
            (
                "fbt",
                ("method.order=teacher_first",),
                "needs the live teacher: FBT puts the teacher first in this pair, so that its "
                "stages 1 to 3 must run live",
            ),
            (
                ["kd", "fitnet"],
                (),
                "needs the live teacher: FitNet reads the teacher's stages, which no cache holds",
            ),
        ],
    )
    def test_says_what_it_could_serve(self, teacher, method, sets, expected):
        parts = parts_of(teacher, *sets, method=method)
        size = cache_size(parts)
        assert size is not None
        assert size.serves == (expected,)
        assert expected in preview(parts, findings=()).text(width=160)

    def test_says_so_of_each_teacher(self, teacher):
        values = {
            "teacher": [{"name": str(teacher)}, {"name": str(teacher)}],
            "student.name": "resnet18",
            "data.source": DATA,
            "method": [{"name": "kd", "teachers": [1]}, {"name": "fitnet", "teachers": [2]}],
            "image_size": 32,
            "train.batch_size": 16,
        }
        recipe = load_recipe(None, values, [CNN])
        text = preview(assemble(recipe, torch.device("cpu")), findings=()).text(width=160)
        assert "teacher 1: a cache could take the teacher's place" in text
        assert "teacher 2: needs the live teacher: FitNet reads the teacher's stages" in text

    def test_of_nobody_is_none(self, teacher):
        assert cache_size(parts_of(teacher, method="control")) is None
