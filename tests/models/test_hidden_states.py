"""Classifiers of transformers taken apart, each a small one of its family with random weights."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification

from anykd.errors import ModelError
from anykd.models import Backbone, StagedModel
from anykd.models.hidden_states import HiddenStatesBackbone
from tests.models.moved import move_weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {
    "image_size": 64,
    "embed_dim": 8,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 4, 8],
    "window_size": 2,
}
STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
PVT = STAGES | {"num_attention_heads": [1, 2, 2, 4], "image_size": 64}

# Per family: its config, and the shapes of its last four levels.
PYRAMID = ((8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2))
DOUBLING = ((8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2))
COLUMN = ((32, 4, 4),) * 4
FAMILIES: dict[str, tuple[dict[str, Any], tuple[tuple[int, int, int], ...], int]] = {
    "beit": (VIT, COLUMN, 1),
    "vit": (VIT, COLUMN, 1),
    "clip": ({"vision_config": VIT}, COLUMN, 1),
    "convnext": (STAGES, PYRAMID, 0),
    "convnextv2": (STAGES, PYRAMID, 0),
    "deit": (VIT, COLUMN, 2),
    "dinov2": (VIT, COLUMN, 1),
    "dinov2_with_registers": (VIT, COLUMN, 5),
    "donut-swin": (SWIN, DOUBLING, 0),
    "focalnet": (
        {"image_size": 64, "embed_dim": 8, "hidden_sizes": [8, 16, 32, 64]}
        | {"depths": [1, 1, 2, 1]},
        DOUBLING,
        0,
    ),
    "hiera": ({"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 2, 1]}, DOUBLING, 0),
    "mobilenet_v2": (
        {"depth_multiplier": 0.35},
        ((8, 16, 16), (16, 8, 8), (32, 4, 4), (112, 2, 2)),
        0,
    ),
    "mobilevit": (
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
        },
        ((16, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)),
        0,
    ),
    "poolformer": (STAGES, PYRAMID, 0),
    "pvt": (PVT, PYRAMID, 0),
    "pvt_v2": (PVT, PYRAMID, 0),
    "regnet": (STAGES | {"embedding_size": 8, "groups_width": 8}, PYRAMID, 0),
    "resnet": (STAGES | {"embedding_size": 8, "layer_type": "basic"}, PYRAMID, 0),
    "segformer": (STAGES | {"num_attention_heads": [1, 2, 2, 4]}, PYRAMID, 0),
    "siglip": ({"vision_config": VIT}, COLUMN, 0),
    "swiftformer": ({"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}, PYRAMID, 0),
    "swin": (SWIN, DOUBLING, 0),
    "swinv2": (SWIN, DOUBLING, 0),
}


def make(family: str, num_labels: int = 7, architecture: str = "") -> Any:
    values = copy.deepcopy(FAMILIES[family][0])
    config = AutoConfig.for_model(family, **values, num_labels=num_labels)
    config.architectures = [architecture]
    model = AutoModelForImageClassification.from_config(config)
    move_weights(model)
    # Small random weights let a deep network die away, unless its batch norms know how small.
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        model.train()(pixel_values=torch.randn(4, 3, size_of(family), size_of(family)))
    return model.eval()


def size_of(family: str) -> int:
    return 32 if FAMILIES[family][1] == COLUMN else 64


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_scores_are_the_models_own_and_levels_lie_on_grids(self, family):
        size, model = size_of(family), make(family)
        images = torch.randn(2, 3, size, size)
        keys = list(model.state_dict())
        with torch.no_grad():
            expected = model(pixel_values=images).logits
            backbone = HiddenStatesBackbone(model, image_size=(size, size)).eval()
            assert isinstance(backbone, Backbone)
            levels, final = backbone.forward_stages(images)
            assert torch.equal(backbone.forward_head(final), expected)
            pooled = backbone.forward_head(final, pre_logits=True)
            staged = StagedModel(backbone, image_size=size)
        assert (expected[0] - expected[1]).abs().max() > 1e-3
        assert staged.shapes == FAMILIES[family][1]
        assert [p for _, p in levels if p is not None and p.shape[1] == 0] == []
        if family != "pvt":  # whose class token joins in stage 4
            assert staged.num_prefix_tokens == FAMILIES[family][2]
        assert (staged.num_classes, staged.width) == (7, pooled.shape[1])
        assert list(backbone.model.state_dict()) == keys

    def test_gradients_reach_the_model_and_its_classifier(self, family):
        size = size_of(family)
        backbone = HiddenStatesBackbone(make(family), image_size=(size, size)).train()
        levels, final = backbone.forward_stages(torch.randn(4, 3, size, size))
        torch.stack([s.square().sum() for s, _ in levels]).sum().backward(retain_graph=True)
        inside = sum(p.grad is not None for p in backbone.parameters())
        backbone.forward_head(final).square().sum().backward()
        assert inside > 0
        for path in backbone.classifiers:
            assert backbone.model.get_submodule(path).weight.grad.abs().sum() > 0


class TestHiddenStatesBackbone:
    def test_a_mean_of_two_heads_is_split_exactly(self):
        model = make("deit", architecture="DeiTForImageClassificationWithTeacher")
        images = torch.randn(2, 3, 32, 32)
        backbone = HiddenStatesBackbone(model, image_size=(32, 32)).eval()
        assert backbone.classifiers == ("cls_classifier", "distillation_classifier")
        with torch.no_grad():
            tokens = model.deit(images).last_hidden_state
            _, final = backbone.forward_stages(images)
        torch.testing.assert_close(
            backbone.forward_head(final, pre_logits=True), tokens[:, :2].mean(dim=1)
        )

    def test_swins_levels_are_the_ends_of_its_stages(self):
        model, images = make("swin"), torch.randn(2, 3, 64, 64)
        backbone = HiddenStatesBackbone(model, image_size=(64, 64)).eval()
        seen: list[torch.Tensor] = []
        for stage in model.swin.encoder.layers:  # type: ignore[union-attr]
            stage.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out[0]))
        with torch.no_grad():
            levels, _ = backbone.forward_stages(images)
        for (stage, _), tokens in zip(levels, seen, strict=True):
            assert torch.equal(stage.flatten(2).transpose(1, 2), tokens)

    def test_a_vits_levels_are_its_blocks_and_not_its_embedding(self):
        model, images = make("vit"), torch.randn(2, 3, 32, 32)
        backbone = HiddenStatesBackbone(model, image_size=(32, 32)).eval()
        with torch.no_grad():
            states = model(pixel_values=images, output_hidden_states=True).hidden_states
            levels, _ = backbone.forward_stages(images)
        assert len(levels) == 4
        for (stage, prefix), tokens in zip(levels, states[1:], strict=True):
            assert prefix is not None
            assert torch.equal(torch.cat([prefix, stage.flatten(2).transpose(1, 2)], 1), tokens)

    def test_a_model_without_a_classifier_gives_the_pooled_vector(self):
        model, images = make("convnext", num_labels=0), torch.randn(2, 3, 64, 64)
        backbone = HiddenStatesBackbone(model, image_size=(64, 64)).eval()
        with torch.no_grad():
            _, final = backbone.forward_stages(images)
        assert torch.equal(backbone.forward_head(final), final)
        assert StagedModel(backbone, image_size=64).num_classes == 0
        assert backbone.classifiers == ("classifier",)

    def test_as_many_classes_as_channels_do_not_confuse_it(self):
        model, images = make("beit", num_labels=32), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = model(pixel_values=images).logits
            backbone = HiddenStatesBackbone(model, image_size=(32, 32)).eval()
            assert torch.equal(backbone(images), expected)
        assert backbone.classifiers == ("classifier",)

    def test_bgr_is_given_to_a_model_that_takes_it(self):
        model, images = make("mobilevit"), torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected = model(pixel_values=images.flip(1)).logits
            backbone = HiddenStatesBackbone(
                model, image_size=(64, 64), pretrained_cfg={"flips_channels": True}
            )
            assert torch.equal(backbone.eval()(images), expected)

    def test_images_of_another_size_are_taken_by_interpolating_positions(self):
        backbone = HiddenStatesBackbone(make("beit"), image_size=(48, 64)).eval()
        levels, _ = backbone.forward_stages(torch.randn(2, 3, 48, 64))
        assert [tuple(stage.shape[1:]) for stage, _ in levels] == [(32, 6, 8)] * 4

    def test_a_copy_has_weights_of_its_own(self):
        backbone = HiddenStatesBackbone(make("swinv2"), image_size=(64, 64)).eval()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            copied, before = copy.deepcopy(backbone), backbone(images)
            move_weights(backbone, seed=3)
            assert torch.equal(copied(images), before)
            assert not torch.equal(backbone(images), before)

    def test_a_model_that_wants_text_is_refused(self):
        config = AutoConfig.for_model("imagegpt", n_embd=8, n_layer=1, n_head=1)
        model = AutoModelForImageClassification.from_config(config)
        with pytest.raises(
            ModelError, match=r"ImageGPT.*does not classify images of 32 x 32 px by"
        ):
            HiddenStatesBackbone(model, image_size=(32, 32))
