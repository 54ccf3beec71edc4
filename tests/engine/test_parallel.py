"""Several ranks against one process: gradients, losses, memories and averages are the same."""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from anykd.distributed import rank, world_size
from anykd.engine.parallel import Parallel, clip_gradients, keep_apart
from anykd.engine.scaling import LossScale
from anykd.engine.step import Stepper
from anykd.errors import RecipeError
from anykd.models import FrozenTeacher
from anykd.models.sharding import filled, gathered, outline, shard, whole
from anykd.types import Batch, StepOutput
from tests.engine.tiny import cnn, method, vit
from tests.methods.for_ranks import NAMES, build_for_ranks
from tests.methods.small import NUM_CLASSES, random_batch
from tests.ranks import run_on_ranks

SHARDED = ("control", "kd", "ofa", "fbt", "crd")
SHARES = {2: [(5, 3), (4, 4)], 4: [(3, 2, 2, 1)]}
"""How many of 8 images each rank has, step by step."""
FAMILIES = {2: "vit", 4: "cnn"}
"""The student's family for so many ranks."""
Tensors = dict[str, Tensor]


def share(batch: Batch, counts: Sequence[int]) -> Batch:
    """This rank's images of a batch."""
    start = sum(counts[: rank()])
    own = slice(start, start + counts[rank()])
    assert batch.labels is not None
    assert batch.indices is not None
    return Batch(batch.images[own], batch.labels[own], batch.indices[own])


def train(
    name: str,
    family: str,
    batches: list[Batch],
    *,
    fsdp: bool = False,
    grad_accum: int = 1,
    clip_grad: float | None = None,
) -> dict[str, Any]:
    """Take a step with each batch, and tell everything that came of it, whole."""
    module = build_for_ranks(name, family)
    average = ModelEmaV3(module.student, decay=0.5, foreach=not fsdp)
    plain = outline(module.student)
    parallel = Parallel(module, module.student, fsdp=fsdp)
    if fsdp:
        shard(average.module)
        if isinstance(module._teacher, FrozenTeacher):
            module._teacher.shard()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    keep_apart(optimizer)
    stepper = Stepper(
        parallel,
        module,
        optimizer,
        precision=nullcontext,
        scale=LossScale(),
        grad_accum=grad_accum,
        clip_grad=clip_grad,
    )
    gradients: list[Tensors] = []
    values: list[dict[str, float]] = []
    shares = SHARES.get(world_size(), [(8,), (8,)])[-len(batches) :]
    for number, (batch, counts) in enumerate(zip(batches, shares, strict=True)):
        even = len(set(counts)) == 1
        # The first step shows what it leaves behind in the second.
        taken = stepper.take(share(batch, counts), key=(0, number), even=even)
        assert taken.moved == 1
        values.append(taken.total() | {"grad_norm": taken.grad_norm})
        found = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
        gradients.append({key: whole(gradient).clone() for key, gradient in found.items()})
        average.update(module.student)
    state = {key: whole(value).detach().clone() for key, value in module.state_dict().items()}
    kept = filled(plain, average.module) if fsdp else average.module
    return {
        "values": values,
        "gradients": gradients,
        "state": state,
        "average": {key: value.clone() for key, value in kept.state_dict().items()},
    }


OPTIONS = {"accumulated": {"grad_accum": 3}, "clipped": {"clip_grad": 0.1}}


def everything_on_a_rank(tensors: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
    batches = [Batch(*each) for each in tensors][: len(SHARES[world_size()])]
    family = FAMILIES[world_size()]
    found: dict[str, Any] = {name: train(name, family, batches) for name in NAMES}
    for name in SHARDED:
        found[f"{name} sharded"] = train(name, family, batches, fsdp=True)
    if world_size() == 2:
        for option, values in OPTIONS.items():
            for fsdp in (False, True):
                key = f"fbt {option} {fsdp}"
                found[key] = train("fbt", family, batches[1:], fsdp=fsdp, **values)
        found["shards"] = look_at_shards()
        found["statistics"] = [running_statistics(NOISE, fsdp) for fsdp in (False, True)]
    return found


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    torch.manual_seed(6)
    made = []
    for _ in range(2):
        batch = random_batch(8)
        images, labels, indices = batch.images, batch.labels, batch.indices
        assert labels is not None
        labels[::2] = torch.eye(NUM_CLASSES)[labels[::2].argmax(1)]  # every other one is not mixed
        made.append(Batch(images.double(), labels, indices))
    return made


@pytest.fixture(scope="module")
def on_ranks(batches, tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    tensors = [(each.images, each.labels, each.indices) for each in batches]
    return {
        count: run_on_ranks(
            everything_on_a_rank, tensors, folder=tmp_path_factory.mktemp("r"), num_ranks=count
        )
        for count in SHARES
    }


@pytest.fixture(scope="module")
def alone(batches) -> Callable[[str, int], dict[str, Any]]:
    """What one process makes of the batches that some ranks share."""
    return functools.cache(
        lambda name, count: train(name, FAMILIES[count], batches[: len(SHARES[count])])
    )


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for own, whole_batch in zip(found["gradients"], expected["gradients"], strict=True):
        assert own.keys() == whole_batch.keys()
        largest = max(gradient.abs().max().item() for gradient in whole_batch.values())
        torch.testing.assert_close(own, whole_batch, rtol=1e-5, atol=1e-6 * largest)
    for own, whole_batch in zip(found["values"], expected["values"], strict=True):
        assert own == pytest.approx(whole_batch, rel=1e-5, abs=1e-6)
    for part in ("state", "average"):
        torch.testing.assert_close(found[part], expected[part], rtol=1e-5, atol=1e-6)


@pytest.mark.distributed
class TestRanks:
    @pytest.mark.parametrize("count", SHARES)
    @pytest.mark.parametrize("name", NAMES)
    def test_train_as_one_process_however_unequal_their_shares(self, name, count, on_ranks, alone):
        expected = alone(name, count)
        for found in on_ranks[count]:
            assert_alike(found[name], expected)

    @pytest.mark.parametrize("count", SHARES)
    @pytest.mark.parametrize("name", SHARDED)
    def test_train_so_where_student_and_teacher_are_sharded(self, name, count, on_ranks, alone):
        expected = alone(name, count)
        for found in on_ranks[count]:
            assert_alike(found[f"{name} sharded"], expected)

    @pytest.mark.parametrize("fsdp", [False, True])
    def test_clip_the_norm_of_the_whole_gradient(self, fsdp, on_ranks, batches):
        expected = train("fbt", "vit", batches[1:], clip_grad=0.1)
        assert expected["values"][0]["grad_norm"] > 1
        assert clip_gradients([], None)[0] == 0
        for found in on_ranks[2]:
            assert_alike(found[f"fbt clipped {fsdp}"], expected)

    @pytest.mark.parametrize("fsdp", [False, True])
    def test_add_up_the_parts_of_a_step(self, fsdp, on_ranks, batches):
        # InfoNCE compares the images of a part: of both ranks' n-th parts, in the ranks' order.
        module, images, labels = build_for_ranks("fbt", "vit"), batches[1].images, batches[1].labels
        assert labels is not None
        for part in [0, 1, 4, 5], [2, 6], [3, 7]:
            (module(Batch(images[part], labels[part])).loss * len(part) / 8).backward()
        expected = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
        for found in on_ranks[2]:
            torch.testing.assert_close(
                found[f"fbt accumulated {fsdp}"]["gradients"][0], expected, rtol=1e-5, atol=1e-6
            )


def look_at_shards() -> dict[str, Any]:
    """What a rank holds of a sharded student, and what it can do with it."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    student = vit(drop_path_rate=0.0)
    student.scale = nn.Parameter(torch.tensor(2.0))  # a scalar: cannot be divided
    teacher = FrozenTeacher(cnn(1))
    fbt = method("fbt", student, teacher.model)
    expected = student(images).logits.detach()
    plain = outline(student)
    shard(student)
    held = sum(
        p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in student.parameters()
    )
    total = sum(p.numel() for p in student.parameters())
    alone = student(images).logits.detach()  # before the method ever ran
    with gathered(student), torch.no_grad():
        # Ranks that are not in step: the second one does nothing.
        once = student(images).logits.clone() if rank() == 0 else expected
        fused = fbt.companions()["fusion"](images).clone() if rank() == 0 else expected
    output: StepOutput = fbt.train()(Batch(images, torch.eye(4)[:3]))
    output.loss.backward()
    made = filled(plain, student)
    return {
        "share": torch.tensor(held / total),
        "errors": torch.stack([(x - expected).abs().max() for x in (alone, once)]),
        "fused": fused.detach(),
        "whole": (made.eval()(images).logits - student.eval()(images).logits).detach().abs().max(),
        "same names": torch.tensor(list(made.state_dict()) == list(plain.state_dict())),
        "scalar is plain": torch.tensor(not isinstance(student.scale, DTensor)),
    }


@pytest.mark.distributed
def test_shards_are_put_together_where_they_are_used(on_ranks):
    first, second = (found["shards"] for found in on_ranks[2])
    for found in (first, second):
        assert 0.45 < found["share"] < 0.55
        assert found["errors"].max() < 1e-5
        assert found["whole"] < 1e-5
        assert found["same names"]
        assert found["scalar is plain"]
    assert first["fused"].isfinite().all()


NOISE = torch.arange(8.0).view(8, 1, 1, 1) + torch.arange(48.0).view(3, 4, 4) / 48


class Noisy(nn.Module):
    """A batch norm and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, batch: Batch) -> StepOutput:
        logits = self.layer(self.norm(batch.images).mean(dim=(2, 3)))
        return StepOutput(logits, {"task": logits.square().mean()})


def running_statistics(images: Tensor, fsdp: bool) -> Tensor:
    module = Noisy()
    parallel = Parallel(module, module.layer, fsdp=fsdp)
    parallel(Batch(images.chunk(world_size())[rank()])).loss.backward()
    parallel.after_backward()
    assert module.norm.running_mean is not None
    assert module.norm.running_var is not None
    return torch.stack([module.norm.running_mean, module.norm.running_var])


@pytest.mark.distributed
@pytest.mark.parametrize("fsdp", [False, True])
def test_running_statistics_are_averaged_in_every_step(fsdp, on_ranks):
    one, two = (running_statistics(half, False) for half in NOISE.chunk(2))
    assert not torch.allclose(one, two)
    for found in on_ranks[2]:
        torch.testing.assert_close(found["statistics"][fsdp], (one + two) / 2)


def test_one_process_shards_nothing():
    student = vit()
    parallel = Parallel(method("control", student), student, fsdp=True)
    assert not parallel.is_sharded
    assert not any(isinstance(p, DTensor) for p in student.parameters())


def test_synchronised_batch_norms_are_refused_on_a_processor():
    student = cnn()
    with pytest.raises(RecipeError, match=r"train\.sync_bn works on GPUs alone, and .* on cpu"):
        Parallel(method("control", student), student, sync_bn=True)
