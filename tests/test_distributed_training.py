"""Training on two ranks against training in one process."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anykd.distributed import rank
from anykd.methods import Method, build_method
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.types import Batch
from tests.experiment.runs import CNN, anykd, short, train_vit
from tests.ranks import run_on_ranks

CONSOLE_SCRIPT = Path(sys.executable).parent / "anykd"
METHODS = ("kd", "ofa", "fbt")


def small(name: str, seed: int, **options: Any) -> StagedModel:
    torch.manual_seed(seed)
    return create_staged(name, num_classes=4, image_size=32, **options)


def build(name: str) -> Method:
    """A method without batch norm: its statistics would be those of half the batch on a rank."""
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    convnext = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    teacher = FrozenTeacher(small("convnext_atto", 1, **convnext))
    student = small("vit_tiny_patch16_224", 0, **vit)
    torch.manual_seed(2)
    method = build_method(name, student, teacher)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in method.modules())
    return method


def step(name: str, batch: Batch, *, parallel: bool) -> dict[str, Tensor]:
    """The gradient of every parameter."""
    method = build(name)
    module = DistributedDataParallel(method) if parallel else method
    module(batch).loss.backward()
    return {key: p.grad for key, p in method.named_parameters() if p.grad is not None}


def steps_on_a_rank(images: Tensor, labels: Tensor) -> dict[str, dict[str, Tensor]]:
    half = slice(rank() * 4, rank() * 4 + 4)
    batch = Batch(images[half], labels[half])
    return {name: step(name, batch, parallel=True) for name in METHODS}


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(8, 3, 32, 32, generator=generator)
    labels = torch.rand(8, 4, generator=generator)
    return Batch(images, labels / labels.sum(dim=1, keepdim=True))


@pytest.fixture(scope="module")
def on_ranks(batch, tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return run_on_ranks(steps_on_a_rank, batch.images, batch.labels, folder=folder)


@pytest.mark.distributed
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_have_the_gradient_of_the_whole_batch(name, on_ranks, batch):
    expected = step(name, batch, parallel=False)
    assert set(expected) == {k for k, p in build(name).named_parameters() if p.requires_grad}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for found in on_ranks:
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6 * largest)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return train_vit(tmp_path_factory.mktemp("teacher") / "run", data="synthetic:3x12")


def distill_on_two_ranks(
    out: Path, teacher: Path, method: str, *sets: str, epochs: int
) -> subprocess.CompletedProcess[str]:
    """Distil with three held-out images of each of three classes."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(CONSOLE_SCRIPT, "distill", "--teacher", teacher, "--student", "resnet18"),
        *("--data", "synthetic:3x12", "--method", method, "--out", out),
        *short(CNN, *sets, epochs=epochs),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def under_torchrun(tmp_path_factory, teacher) -> tuple[Path, subprocess.CompletedProcess[str]]:
    path = tmp_path_factory.mktemp("torchrun") / "run"
    return path, distill_on_two_ranks(path, teacher, "fbt", epochs=2)


@pytest.mark.distributed
class TestTorchrun:
    def test_trains_to_the_end(self, under_torchrun):
        path, done = under_torchrun
        assert done.returncode == 0, done.stderr
        assert json.loads((path / "environment.json").read_text())["ranks"] == 2
        assert "Grad strides" not in done.stderr  # DDP copies gradients whose layout is another

    def test_lets_the_first_rank_alone_write_and_speak(self, under_torchrun):
        path, done = under_torchrun
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        found = [(line["event"], line["epoch"], line.get("step")) for line in lines]
        assert found == [
            line
            for e in (0, 1)
            for line in (("step", e, 0), ("diagnosis", e, 1), ("step", e, 1), ("epoch", e, None))
        ]
        assert done.stderr.count("epoch 2/2: ") == 1

    def test_prints_the_result_once(self, under_torchrun):
        assert under_torchrun[1].stdout.count("top-1") == 1

    def test_counts_every_image_once(self, under_torchrun):
        path, _ = under_torchrun
        found = json.loads((path / "summary.json").read_text())
        assert found["num_samples"] == found["teachers"][0]["num_samples"] == 9
        for top1 in (found["top1"], found["fusion_top1"], found["teachers"][0]["top1"]):
            assert top1 * 9 / 100 == pytest.approx(round(top1 * 9 / 100))

    def test_gives_a_student_that_scores_the_same_in_one_process(self, under_torchrun):
        path, _ = under_torchrun
        found = json.loads((path / "summary.json").read_text())
        model = timm.create_model(f"local-dir:{path / 'student'}", pretrained=True)
        assert model.num_classes == 3
        done = anykd("evaluate", path)
        assert done.out.startswith(f"top-1 {found['top1']:.2f} %")

    def test_scores_the_student_that_it_saves(self, under_torchrun):
        path, _ = under_torchrun
        found = json.loads((path / "summary.json").read_text())
        assert f"loss {found['loss']:.4f}  9 images" in anykd("evaluate", path).out

    def test_trains_by_features_alone_without_labels(self, teacher, tmp_path):
        methods = "method=[{name='rsd',task_weight=0},{name='crd',num_negatives=8}]"
        sets = ("data.labels=false", "train.log_every=1", methods)
        done = distill_on_two_ranks(tmp_path / "run", teacher, "rsd", *sets, epochs=1)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("trained, and not scored")
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        *steps, epoch = (line for line in map(json.loads, lines) if "grad_norms" not in line)
        assert epoch == {"event": "epoch", "epoch": 0}
        assert len(steps) == 2
        for step in steps:
            assert step["rsd"] + step["crd"] == pytest.approx(step["loss"])
            assert math.isfinite(step["loss"])
        newest = max((tmp_path / "run" / "checkpoint").glob("step-*"))
        saved = {k: v for p in newest.glob("*.safetensors") for k, v in load_file(p).items()}
        memory = saved["module.methods.1.student_memory"]
        start = F.normalize(torch.randn(36, 128, generator=torch.Generator().manual_seed(0)))
        # Two steps of 16 images, of which each rank sees a half, leave out four of the 36.
        assert (memory == start).all(dim=1).sum() == 4

    def test_says_how_many_images_a_step_has_and_that_the_rate_is_as_written(self, under_torchrun):
        said = under_torchrun[1].stderr
        assert "16 images per optimiser step, shared by 2 ranks with 1 part each" in said
        assert "the learning rate 0.001 is used as written" in said
