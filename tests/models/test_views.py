"""What each model sees of one batch, and what several share."""

from typing import Any

import pytest
import torch
from torch import nn

from anykd.methods import build_method, build_methods, read_tables
from anykd.models import FrozenTeacher, StagedModel, View, Views, create_staged
from anykd.types import Batch


class Tiny(nn.Module):
    """A model of our own, which keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, 2, 1) for c in (3, 4, 4, 4))
        self.classifier = nn.Linear(4, 3)
        self.seen: list[torch.Tensor] = []

    def forward_stages(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        self.seen.append(x)
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return maps, x

    def forward_head(self, final: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        pooled = final.mean(dim=(2, 3))
        return pooled if pre_logits else self.classifier(pooled)


IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def staged(size: int = 32, **view: Any) -> StagedModel:
    return StagedModel(Tiny(), image_size=size, **view)


def step(student: StagedModel, *teachers: StagedModel) -> list[torch.Tensor]:
    """What each model saw of one training step."""
    tables = read_tables([{"name": "kd"}])
    method = build_methods(tables, student, [(FrozenTeacher(t), 1.0) for t in teachers])
    method(Batch(images=torch.rand(2, 3, 48, 48), labels=torch.eye(3)[:2]))
    return [model.model.seen[-1] for model in (student, *teachers)]


def test_equal_views_are_one_tensor():
    student, teacher = step(staged(**IMAGENET), staged(**IMAGENET))
    assert student is teacher


def test_each_model_gets_its_own_size_and_statistics():
    student, teacher = step(staged(**IMAGENET), staged(size=40, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert student.shape[-2:] == (32, 32)
    assert teacher.shape[-2:] == (40, 40)
    assert teacher.max() <= 1.2
    assert student.max() > 1.2


def test_several_teachers_share_too():
    _, first, second = step(staged(), staged(**IMAGENET), staged(**IMAGENET))
    assert first is second


def test_models_that_differ_in_statistics_alone_share_the_resized_images(monkeypatch):
    resized, models = [], (staged(), staged(**IMAGENET))
    method = build_method("kd", models[0], FrozenTeacher(models[1]))
    own = View.resize
    monkeypatch.setattr(View, "resize", lambda view, x: resized.append(view) or own(view, x))
    method(Batch(images=torch.rand(2, 3, 48, 48), labels=torch.eye(3)[:2]))
    assert len(resized) == 1
    assert not torch.equal(models[0].model.seen[-1], models[1].model.seen[-1])


def test_every_interpolation_is_its_own():
    images, seen = torch.rand(1, 3, 48, 48), {}
    for mode in ("nearest", "bilinear", "bicubic", "lanczos"):
        model = staged(interpolation=mode)
        seen[mode] = model.prepare(images)
    assert not torch.equal(seen["nearest"], seen["bilinear"])
    assert not torch.equal(seen["bilinear"], seen["bicubic"])
    assert torch.equal(seen["lanczos"], seen["bicubic"])


def test_images_of_the_right_size_are_not_touched():
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(staged().prepare(images), images)
    views = Views(images)
    model = create_staged("test_resnet", num_classes=2, image_size=32).eval()
    torch.testing.assert_close(model(views).logits, model(images).logits)


@pytest.mark.parametrize("interpolation", [None, "bilinear"])
def test_the_view_is_the_models_own_unless_given(interpolation):
    model = create_staged("test_resnet", image_size=32).model
    view = StagedModel(model, image_size=32, interpolation=interpolation).view
    assert view.interpolation == (interpolation or model.pretrained_cfg["interpolation"])
    assert view.mean == model.pretrained_cfg["mean"]
