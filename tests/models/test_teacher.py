"""A teacher that nothing trains, saves or switches to train mode."""

import pytest
import torch
from torch import nn

from anykd.errors import ModelError
from anykd.methods import build_method
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.types import Batch


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


class TestClassMap:
    @pytest.fixture
    def model(self) -> StagedModel:
        return create_staged("resnet18", num_classes=5, image_size=32)

    def test_chooses_and_orders_the_logits_alone(self, model):
        images = torch.rand(2, 3, 32, 32)
        whole, mapped = FrozenTeacher(model)(images), FrozenTeacher(model, [3, 0, 4])(images)
        torch.testing.assert_close(mapped.logits, whole.logits[:, [3, 0, 4]], rtol=0, atol=0)
        torch.testing.assert_close(mapped.pooled, whole.pooled, rtol=0, atol=0)
        torch.testing.assert_close(mapped.stages, whole.stages, rtol=0, atol=0)

    def test_gives_the_teachers_distribution_among_the_chosen(self, model):
        images = torch.rand(2, 3, 32, 32)
        among_all = FrozenTeacher(model)(images).logits.softmax(dim=1)[:, [3, 0]]
        among_two = FrozenTeacher(model, [3, 0])(images).logits.softmax(dim=1)
        torch.testing.assert_close(among_two, among_all / among_all.sum(dim=1, keepdim=True))

    def test_holds_for_the_tail_too_with_gradients(self, model):
        teacher = FrozenTeacher(model, [3, 0])
        stage3 = teacher(torch.rand(2, 3, 32, 32)).stages[2].clone().requires_grad_()
        logits = teacher.tail(stage3).logits
        whole = FrozenTeacher(model).tail(stage3).logits
        torch.testing.assert_close(logits, whole[:, [3, 0]], rtol=0, atol=0)
        logits.sum().backward()
        assert stage3.grad is not None
        assert stage3.grad.abs().sum() > 0

    def test_makes_the_teacher_one_of_so_many_classes(self, model):
        teacher = FrozenTeacher(model, (3, 0))
        assert (teacher.num_classes, teacher.classes) == (2, (3, 0))
        assert (FrozenTeacher(model).num_classes, FrozenTeacher(model).classes) == (5, None)

    @pytest.mark.parametrize("method", ["kd", "ofa", "fbt"])
    def test_lets_it_teach_a_student_of_these_classes(self, model, method):
        student = create_staged("resnet18", num_classes=2, image_size=32)
        built = build_method(method, student, FrozenTeacher(model, [3, 0]))
        output = built(Batch(images=torch.rand(4, 3, 32, 32), labels=torch.eye(2)[[0, 1, 1, 0]]))
        output.loss.backward()
        assert output.logits.shape == (4, 2)

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            ([0, 5], "asks for class 5, but its classes are 0 to 4"),
            ([-1], "asks for class -1, but its classes are 0 to 4"),
            ([0, 2, 2], "chooses class 2 more than once"),
            ([], "is empty: it must choose a class or more"),
        ],
    )
    def test_that_does_not_fit_is_refused(self, model, classes, message):
        with pytest.raises(ModelError, match=f"the class map of resnet18 {message}"):
            FrozenTeacher(model, classes)
