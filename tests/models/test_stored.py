"""A teacher whose answers come with the batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from anykd.errors import ModelError
from anykd.models import FrozenTeacher, StagedModel, Views
from anykd.models.stored import StoredTeacher
from anykd.types import Features, Stored
from tests.methods.small import small, stored_teacher

LOGITS, POOLED = torch.rand(2, 5), torch.rand(2, 28)
STORED = Stored(LOGITS, POOLED)


@contextmanager
def modules_that_run(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules within a model that are called."""
    called: list[str] = []
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, part in model.named_modules()
        if name
    ]
    yield called
    for hook in hooks:
        hook.remove()


@pytest.fixture
def model() -> StagedModel:
    return small("vit")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32)


def both(model: StagedModel, slot: int = 0) -> StoredTeacher:
    return stored_teacher(FrozenTeacher(model), ("logits", "pooled"), slot)


def assert_same(actual: Features, expected: Features) -> None:
    torch.testing.assert_close(vars(actual), vars(expected), rtol=0, atol=0)


def test_gives_what_the_batch_brings_without_running(model, images):
    with modules_that_run(model) as called:
        seen = both(model)(Views(images, (STORED,)))
    assert called == []
    assert (seen.stages, seen.prefixes) == ((), ())
    assert torch.equal(seen.logits, LOGITS)
    assert torch.equal(seen.pooled, POOLED)


def test_resizes_and_normalises_nothing(images):
    views = Views(images, (STORED,))
    both(small("vit", image_size=48))(views)
    assert not views._resized
    assert not views._normalised


def test_takes_its_own_slot(model, images):
    other = Stored(LOGITS + 1, POOLED + 1)
    seen = both(model, slot=2)(Views(images, (other, None, STORED)))
    assert torch.equal(seen.logits, LOGITS)


@pytest.mark.parametrize("stored", [(), (None,), (None, STORED)], ids=["none", "empty", "other"])
def test_runs_where_nothing_is_stored_for_it(model, images, stored):
    expected = FrozenTeacher(model)(images)
    assert_same(both(model)(Views(images, stored)), expected)


def test_runs_on_plain_images(model, images):
    assert_same(both(model)(images), FrozenTeacher(model)(images))


def test_runs_its_tail_with_gradients(model, images):
    teacher = both(model)
    live = teacher(images)
    stage3 = live.stages[2].clone().requires_grad_()
    seen = teacher.tail(stage3, live.prefixes[2])
    torch.testing.assert_close(seen.logits, live.logits)
    seen.logits.sum().backward()
    assert stage3.grad is not None
    assert stage3.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("holds", "shapes"), [("logits", [(2, 5), (2, 0)]), ("pooled", [(2, 0), (2, 28)])]
)
def test_has_nothing_of_a_part_that_is_not_stored(model, images, holds, shapes):
    teacher = stored_teacher(FrozenTeacher(model), (holds,))
    assert teacher.holds == {holds}
    for stored in (STORED, Stored(**{holds: getattr(STORED, holds)})):
        seen = teacher(Views(images, (stored,)))
        assert [tuple(seen.logits.shape), tuple(seen.pooled.shape)] == shapes


def test_takes_stored_scores_for_those_of_its_class_map(model, images):
    teacher = stored_teacher(FrozenTeacher(model, [3, 0]), ("logits",))
    logits = torch.rand(2, 2)
    assert torch.equal(teacher(Views(images, (Stored(logits),))).logits, logits)
    mapped = teacher(images).logits
    torch.testing.assert_close(mapped, FrozenTeacher(model)(images).logits[:, [3, 0]])


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            Stored(LOGITS[:, :1], POOLED),
            "stored logits of vit_tiny.* are 2x1 for 2 images, not 2x5",
        ),
        (Stored(LOGITS[:1], POOLED[:1]), "stored pooled of .* are 1x28 for 2 images, not 2x28"),
        (Stored(LOGITS), "stored pooled of .* are nothing for 2 images, not 2x28"),
    ],
)
def test_refuses_what_cannot_be_its_own_answer(model, images, stored, message):
    with pytest.raises(ModelError, match=message):
        both(model)(Views(images, (stored,)))


def test_is_frozen_like_every_teacher(model):
    teacher = both(model.train())
    assert not any(part.training for part in teacher.model.modules())
    assert not any(p.requires_grad for p in teacher.model.parameters())
