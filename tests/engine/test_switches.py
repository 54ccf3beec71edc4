"""Switches of precision, speed and memory leave the numbers where they should be."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from anykd.engine import Listener, Parallel, TrainConfig
from anykd.errors import ModelError, RecipeError
from anykd.methods import Method, build_method
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.models.recompute import recompute_blocks
from anykd.types import Batch
from tests.engine.tiny import VIT, cnn, method, trainer, vit
from tests.experiment.runs import short
from tests.methods.small import small

ROOT = Path(__file__).parents[2]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


class Kept:
    """Counts the bytes that autograd keeps for the backward pass, weights left out."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.sizes: dict[int, int] = {}
        self.hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


RECOMPUTED = {
    "resnet18": {"layers": [3, 3, 3, 3], "channels": [64, 64, 96, 128]},
    "vit_tiny_patch16_224": VIT | {"drop_path_rate": 0.3, "proj_drop_rate": 0.1},
    "swin_pico_patch4_window7_224": {
        **{"embed_dim": 8, "depths": (1, 1, 2, 2), "num_heads": (1, 1, 2, 2)},
        **{"drop_path_rate": 0.3, "window_size": 4},
    },
    "convnext_atto": {"depths": (1, 1, 3, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.3},
    "mobilenetv2_050": {},
    "regnety_002": {},
    "torchvision:resnet18": {},
    "torchvision:mobilenet_v2": {"dropout": 0.1},
}
"""Models with the options that make them small; some draw random numbers."""


def step(staged: StagedModel) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """Bytes kept, gradients and buffers of a step in which every stage counts."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    kept = Kept(staged)
    with kept.hooks:
        features = staged.train()(images)
        loss = features.logits.square().mean()
        loss = loss + sum(stage.square().mean() for stage in features.stages)
    loss.backward()
    return kept.bytes, gradients(staged), dict(staged.named_buffers())


def build(name: str) -> StagedModel:
    if name == "mlp":
        return small("mlp")
    return create_staged(name, num_classes=4, image_size=32, **RECOMPUTED[name])


class Flat(nn.Module):
    """Four convolutions and a layer, in no list and of no class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.three, self.four = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.head = nn.Linear(4, 4)

    def forward_stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        stages = []
        for layer in (self.one, self.two, self.three, self.four):
            x = layer(x)
            stages.append(x)
        return stages, x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean(dim=(2, 3))
        return pooled if pre_logits else self.head(pooled)


class TestGradCheckpointing:
    @pytest.mark.parametrize("name", [*RECOMPUTED, "mlp"])
    def test_keeps_less_and_changes_no_bit(self, name):
        plain = build(name)
        saving = copy.deepcopy(plain)
        recompute_blocks(saving)
        expected_bytes, *expected = step(plain)
        found_bytes, *found = step(saving)
        assert found_bytes < 0.7 * expected_bytes
        for own, other in zip(found, expected, strict=True):
            assert own.keys() == other.keys()
            assert all(torch.equal(own[key], other[key]) for key in own)
        assert list(saving.state_dict()) == list(plain.state_dict())

    def test_of_a_copy_runs_the_copy(self):
        saving = vit()
        recompute_blocks(saving)
        copied = copy.deepcopy(saving)
        step(copied)
        assert not gradients(saving)
        assert set(gradients(copied)) == {name for name, _ in copied.named_parameters()}

    @pytest.mark.parametrize("student", [cnn, vit])
    def test_changes_no_bit_of_fbt_whose_fusion_runs_the_students_tail_again(self, student):
        batch = Batch(torch.rand(8, 3, 32, 32), torch.eye(4)[torch.arange(8) % 4])
        teacher = FrozenTeacher(cnn(1))
        plain = build_method("fbt", student(), teacher, order="teacher_first")
        saving = copy.deepcopy(plain)
        recompute_blocks(saving.student)
        for each in (plain, saving):
            each.train()(batch).loss.backward()
        expected, found = gradients(plain), gradients(saving)
        assert all(torch.equal(found[key], expected[key]) for key in expected | found)
        buffers = dict(plain.named_buffers())
        assert all(torch.equal(own, buffers[key]) for key, own in saving.named_buffers())

    def test_of_a_model_without_blocks_is_refused(self):
        with pytest.raises(ModelError, match="Flat has no blocks that could be computed again"):
            recompute_blocks(StagedModel(Flat(), image_size=32))


def trained(
    student: Callable[..., StagedModel], teacher: Callable[..., StagedModel], **options: Any
) -> tuple[Method, list[dict[str, Any]]]:
    """A method after two short epochs, and what was logged."""
    lines: list[dict[str, Any]] = []
    run = trainer(
        method("fbt", student(), teacher(1)),
        **({"optimizer": "sgd", "peak_lr": 0.01, "log_every": 1} | options),
    )
    run.scale.value = 2.0**4 if run.scale.enabled else 1.0  # nothing overflows at the start
    run.fit(Listener(log=lines.append))
    return run.module, lines  # pyright: ignore[reportReturnType]


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class TestPrecision:
    @pytest.mark.parametrize(("student", "teacher"), [(cnn, vit), (vit, cnn)])
    @pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.005)])
    def test_trains_as_float32_does(self, student, teacher, precision, tolerance):
        start = flat(method("fbt", student(), teacher(1)))
        exact, expected = trained(student, teacher)
        module, lines = trained(student, teacher, precision=precision)
        for line, other in zip(lines, expected, strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=tolerance)
            assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=10 * tolerance)
        way = flat(exact) - start
        assert (flat(module) - flat(exact)).norm() < 10 * tolerance * way.norm()
        assert flat(module).dtype is torch.float32
        assert not torch.equal(flat(module), flat(exact))  # it was another precision

    @pytest.mark.parametrize("scale", [1.0, 2.0**16])
    def test_fp16_loses_small_gradients_only_where_the_loss_is_not_scaled(self, scale):
        norms = []
        for precision in ("float32", "fp16"):
            student = vit()
            # A loss of a millionth has gradients below float16's smallest number.
            module = build_method("control", student, task_weight=1e-6)
            run = trainer(module, precision=precision)
            run.scale.value = scale if run.scale.enabled else 1.0
            lines: list[dict[str, Any]] = []
            run.fit(Listener(log=lines.append))
            norms.append(lines[0]["grad_norm"])
        assert (norms[1] == pytest.approx(norms[0], rel=0.02)) == (scale > 1)


def test_average_with_warm_up_is_what_its_formula_says():
    seen: list[Tensor] = []
    run = trainer(method("control", vit()), ema_decay=0.5, epochs=3)
    run.fit(Listener(step=lambda epoch, step: seen.append(flat(run.averaged))))
    expected = seen[0]
    for step_number, weights in enumerate(seen[1:], start=2):
        decay = min(0.5, 1 - step_number ** (-2 / 3))
        expected = decay * expected + (1 - decay) * weights
    assert run.ema is not None
    torch.testing.assert_close(flat(run.ema.module), expected)


COMPILED = """
import copy, sys, torch
from anykd.engine.parallel import Parallel
from tests.methods.small import build_small, random_batch, small

torch.manual_seed(0)
method = build_small("control", small("cnn", 1), None).train()
eager = copy.deepcopy(method)
parallel = Parallel(method, method.student, compile=True)
for _ in range(2):
    batch = random_batch()
    for run in (eager, parallel):
        run(batch).loss.backward()
pairs = zip(method.named_parameters(), eager.parameters(), strict=True)
for (name, own), other in pairs:
    torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
torch.testing.assert_close(method.state_dict(), eager.state_dict(), rtol=1e-4, atol=1e-5)
assert list(method.state_dict()) == list(eager.state_dict())
print("compiled", method._compiled_call_impl is not None)
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In another process: the compiler cannot look through the shape checks of a test run."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_compiled_training_is_the_eager_one(tmp_path):
    done = run_python(COMPILED, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "compiled True"


BROKEN = """
import sys, torch
from torch import nn
from anykd.engine.parallel import Parallel
from anykd.errors import RecipeError
from anykd.types import Batch, StepOutput

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        sign = 1 if batch.images.mean() > 0 else -1  # asks the host in the middle
        return StepOutput(batch.images, {"task": self.weight.sum() * sign})

images = torch.rand(2, 3, 4, 4)
module = Broken()
partial = Parallel(module, module, compile="partial")
print(partial(Batch(images)).loss.item() == 1)
torch.compiler.reset()  # what is compiled belongs to the code, not to the module
module = Broken()
try:
    Parallel(module, module, compile=True)(Batch(images))
except RecipeError as error:
    print(error, "|", error.hint)
"""


def test_what_is_no_one_program_is_refused_or_compiled_in_parts(tmp_path):
    done = run_python(BROKEN, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    was_right, refusal = done.stdout.splitlines()
    assert was_right == "True"
    assert refusal.startswith("train.compile: these models and this method are not one program: ")
    assert refusal.endswith('| set train.compile = "partial", or leave it out')


def test_cuda_graphs_need_a_gpu_and_a_single_part():
    module = cnn()
    with pytest.raises(RecipeError, match="works on GPUs alone, and this run is on cpu") as error:
        Parallel(module, module, compile="cuda_graphs")
    assert error.value.hint == "set train.compile = true"
    with pytest.raises(ValidationError, match="set grad_accum = 1"):
        TrainConfig(compile="cuda_graphs", grad_accum=2)


def test_a_missing_compiler_is_told_before_anything_is_written(tmp_path):
    command = [
        *("anykd", "train", "--model", "resnet18", "--data", "synthetic:2x8"),
        *("--out", str(tmp_path / "run"), *short("train.compile=true")),
    ]
    done = run_python(
        f"import sys, anykd.cli; sys.argv = {command}; anykd.cli.main()",
        CXX=str(tmp_path / "no-compiler"),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.returncode == 2, done.stderr
    assert "error: train.compile: torch.compile does not work here: " in done.stderr
    assert "hint: install a C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
