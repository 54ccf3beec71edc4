"""A teacher that nothing trains, saves or switches to train mode."""

import pytest
import torch
from torch import nn

from anykd.methods import build_method
from anykd.models import FrozenTeacher, create_staged


@pytest.fixture
def teacher() -> FrozenTeacher:
    return FrozenTeacher(create_staged("resnet18", num_classes=3, image_size=32).train())


def modes(teacher: FrozenTeacher) -> set[bool]:
    return {part.training for part in teacher.model.modules()}


def test_teacher_is_frozen_and_in_eval_mode_from_the_start(teacher):
    assert modes(teacher) == {False}
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_teacher_stays_so_whatever_the_method_is_switched_to(teacher):
    student = create_staged("resnet18", num_classes=3, image_size=32)
    method = build_method("kd", student, teacher)
    method.train()
    method.requires_grad_(True)
    assert modes(teacher) == {False}
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_teacher_is_no_part_of_a_module_that_holds_it(teacher):
    holder = nn.Module()
    holder.teacher = teacher  # type: ignore[assignment]
    assert not isinstance(teacher, nn.Module)
    assert not holder.state_dict()
    assert not list(holder.parameters())
    assert not list(holder.children())


def test_teacher_leaves_no_graph(teacher):
    features = teacher(torch.rand(2, 3, 32, 32))
    tensors = (*features.stages, features.pooled, features.logits)
    assert not any(x.requires_grad for x in tensors)


def test_teacher_moves_when_asked_and_gives_itself_back(teacher):
    assert teacher.to("cpu", memory_format=torch.channels_last) is teacher
    assert teacher.model.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert teacher(torch.rand(2, 3, 32, 32)).logits.shape == (2, 3)
