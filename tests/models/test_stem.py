"""A CNN for small images keeps their resolution at its first stage."""

import pytest
import torch
from torch import nn

from anykd.errors import ModelError
from anykd.models import create_staged, save_model


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("resnet18", [32, 16, 8, 4]),
        ("resnet18d", [32, 16, 8, 4]),  # three convolutions and a pool
        ("densenet121", [32, 16, 8, 4]),
        ("convnext_atto", [32, 16, 8, 4]),  # a stem that cuts patches
        ("mobilenetv2_050", [16, 8, 4, 2]),  # its first stage halves by itself
    ],
)
def test_32_px_stay_32_px_up_to_the_first_stage(name, sides):
    staged = create_staged(name, num_classes=7, image_size=32, stem="small")
    assert [shape[1] for shape in staged.shapes] == sides
    plain = create_staged(name, num_classes=7, image_size=32)
    assert plain.shapes[0][1] < staged.shapes[0][1]
    assert [shape[0] for shape in plain.shapes] == [shape[0] for shape in staged.shapes]


def test_of_resnet_is_one_3x3_convolution_and_no_pool():
    model = create_staged("resnet18", image_size=32, stem="small").model
    assert isinstance(model.conv1, nn.Conv2d)
    assert model.conv1.weight.shape == (64, 3, 3, 3)
    assert (model.conv1.stride, model.conv1.padding) == ((1, 1), (1, 1))
    assert isinstance(model.maxpool, nn.Identity)
    assert model.layer2[0].conv1.stride == (2, 2)


def test_every_layer_trains():
    staged = create_staged("resnet18", num_classes=7, image_size=32, stem="small").train()
    staged(torch.rand(2, 3, 32, 32)).logits.square().sum().backward()
    assert all(p.grad is not None for p in staged.parameters())
    assert staged.model.conv1.weight.grad.abs().sum() > 0


def test_a_saved_student_comes_back_with_it(tmp_path):
    staged = create_staged("resnet18", num_classes=7, image_size=32, stem="small").eval()
    save_model(staged, tmp_path / "student", class_names=tuple("abcdefg"))
    again, images = create_staged(str(tmp_path)).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images).logits, staged(images).logits)
    assert again.shapes == staged.shapes
    assert again.class_names == tuple("abcdefg")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224"])
def test_a_model_of_patches_is_told_what_to_set_instead(name):
    with pytest.raises(ModelError, match="has no convolutional stem") as caught:
        create_staged(name, image_size=32, stem="small")
    assert "patch_size" in (caught.value.hint or "")


def test_another_stem_is_refused():
    with pytest.raises(ModelError, match="no stem is called 'tiny'"):
        create_staged("resnet18", image_size=32, stem="tiny")
