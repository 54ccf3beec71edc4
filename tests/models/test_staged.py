"""Any timm classifier as four stages and a head."""

import copy
import functools
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anykd.errors import ModelError
from anykd.models import StagedModel, create_staged
from tests.models.moved import move_weights

Size = int | tuple[int, int]

FAMILIES = {
    "resnet18": (64, (64, 96)),
    "mobilenetv2_100": (64, (96, 64)),
    "convnext_atto": (64, (64, 96)),
    "swin_tiny_patch4_window7_224": (64, (64, 96)),
    "vit_tiny_patch16_224": (64, (64, 96)),
    "deit_tiny_distilled_patch16_224": (64, 96),
    "mixer_s32_224": (64, (64, 96)),
    "resmlp_12_224": (64, (96, 64)),
}
CASES = [(name, size) for name, sizes in FAMILIES.items() for size in sizes]


@functools.cache
def built(name: str, size: Size = 64) -> StagedModel:
    """A model with moved weights, in eval mode; tests only read it."""
    staged = create_staged(name, num_classes=7, image_size=size)
    move_weights(staged.model)
    return staged.eval()


def random_images(size: Size = 64, count: int = 2) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(count, 3, height, width)


def own_logits(staged: StagedModel, images: Tensor) -> Tensor:
    """What plain timm computes from images that are normalised by hand."""
    config = staged.model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return staged.model((images - mean) / std)


@pytest.mark.parametrize(("name", "size"), CASES)
class TestEveryFamily:
    @torch.no_grad()
    def test_shapes_are_those_of_the_four_stages(self, name, size):
        staged = built(name, size)
        features = staged(random_images(size, count=3))
        assert len(features.stages) == len(features.prefixes) == len(staged.taps) == 4
        assert [tuple(stage.shape) for stage in features.stages] == [
            (3, *shape) for shape in staged.shapes
        ]
        assert features.pooled.shape == (3, staged.width)
        assert features.logits.shape == (3, staged.num_classes) == (3, 7)

    @torch.no_grad()
    def test_logits_are_those_of_plain_timm_on_normalised_images(self, name, size):
        staged, images = built(name, size), random_images(size)
        expected = own_logits(staged, images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(staged(images).logits, expected, rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_pooled_is_what_the_classifier_reads(self, name, size):
        staged, images = built(name, size), random_images(size)
        features = staged(images)
        heads = staged.model.get_classifier()
        if isinstance(heads, nn.Module):
            torch.testing.assert_close(heads(features.pooled), features.logits)
        else:  # a distilled DeiT: one classifier for each of two tokens, whose mean is pooled
            final = staged.model.forward_features(staged.prepare(images))
            torch.testing.assert_close(features.pooled, final[:, :2].mean(dim=1))


class TestStages:
    @pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
    def test_of_a_hierarchical_model_halve_the_grid_at_each_step(self, name):
        staged = built(name)
        assert not staged.columnar
        assert [shape[1:] for shape in staged.shapes] == [(16, 16), (8, 8), (4, 4), (2, 2)]

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resmlp_12_224"])
    def test_of_a_model_of_12_blocks_are_the_outputs_of_2_4_10_and_12(self, name):
        staged, seen = copy.deepcopy(built(name)), []
        assert staged.columnar
        assert staged.taps == (1, 3, 9, 11)
        for block in staged.model.blocks:
            block.register_forward_hook(lambda module, given, made: seen.append(made))
        with torch.no_grad():
            features = staged(random_images())
        for index, stage in zip((1, 3, 9, 11), features.stages, strict=True):
            patches = seen[index][:, staged.num_prefix_tokens :]
            assert torch.equal(stage.flatten(2).transpose(1, 2), patches)

    @pytest.mark.parametrize(
        ("depth", "taps"),
        [
            (4, (0, 1, 2, 3)),
            (5, (0, 1, 3, 4)),
            (6, (1, 2, 3, 5)),
            (7, (1, 3, 4, 6)),
            (8, (1, 3, 5, 7)),
        ],
    )
    def test_of_a_shallow_model_end_the_quarters_of_its_depth(self, depth, taps):
        staged = create_staged(
            "vit_tiny_patch16_224", num_classes=2, image_size=32, depth=depth, embed_dim=12
        )
        assert staged.taps == taps

    def test_of_mobilenetv2_end_in_the_1280_channels_before_the_pool(self):
        staged, images = built("mobilenetv2_100"), random_images()
        assert [shape[0] for shape in staged.shapes] == [24, 32, 96, 1280]
        with torch.no_grad():
            stage_4 = staged(images).stages[3]
            assert torch.equal(stage_4, staged.model.forward_features(staged.prepare(images)))

    def test_of_a_vit_at_224_are_196_patches_beside_one_class_token(self):
        staged = built("vit_tiny_patch16_224", 224)
        with torch.no_grad():
            features = staged(random_images(224))
            final = staged.model.forward_features(staged.prepare(random_images(224)))
        assert final.shape[1] == 197
        for stage, prefix in zip(features.stages, features.prefixes, strict=True):
            assert prefix is not None
            assert stage.shape == (2, 192, 14, 14)
            assert prefix.shape == (2, 1, 192)

    def test_of_a_distilled_deit_keep_both_its_tokens(self):
        staged, seen = copy.deepcopy(built("deit_tiny_distilled_patch16_224")), []
        staged.model.blocks[9].register_forward_hook(lambda m, given, made: seen.append(made))
        with torch.no_grad():
            prefix = staged(random_images()).prefixes[2]
        assert staged.num_prefix_tokens == 2
        assert prefix is not None
        assert torch.equal(prefix, seen[0][:, :2])

    @pytest.mark.parametrize("name", ["resnet18", "mixer_s32_224"])
    def test_of_a_model_without_prefix_tokens_have_none(self, name):
        staged = built(name)
        with torch.no_grad():
            assert staged(random_images()).prefixes == (None,) * 4
        assert staged.num_prefix_tokens == 0
        assert staged.prefix_tokens() is None


class TestThreeLevels:
    """LeViT, PiT and others have three: what the stem makes of the image is their stage 1."""

    @pytest.mark.parametrize(
        ("name", "stem", "chans"),
        [
            ("levit_128s", "stem", [128, 128, 256, 384]),
            ("pit_ti_224", "patch_embed", [64, 64, 128, 256]),
            ("visformer_tiny", "stem", [16, 96, 192, 384]),
            ("jx_nest_tiny", "patch_embed", [96, 96, 192, 384]),
        ],
    )
    def test_the_stem_gives_stage_1(self, name, stem, chans):
        staged, seen = copy.deepcopy(built(name)), []
        part = staged.model.get_submodule(stem)
        part.register_forward_hook(lambda module, given, made: seen.append(made))
        with torch.no_grad():
            features = staged(random_images())
        assert [shape[0] for shape in staged.shapes] == chans
        assert torch.equal(features.stages[0], seen[0].reshape(features.stages[0].shape))

    def test_its_batch_statistics_count_each_image_once(self):
        staged = create_staged("levit_128s", num_classes=7, image_size=64).train()
        plain, images = copy.deepcopy(staged.model), random_images(count=4)
        plain(staged.prepare(images))
        staged(images)
        for key, tensor in plain.state_dict().items():
            if key.startswith("stem"):
                torch.testing.assert_close(tensor, staged.model.state_dict()[key])

    def test_gradients_of_stage_1_reach_the_stem(self):
        staged = create_staged("levit_128s", num_classes=7, image_size=64).train()
        staged(random_images(count=4)).stages[0].square().sum().backward()
        assert all(p.grad is not None for p in staged.model.stem.parameters())
        assert all(p.grad is None for p in staged.model.stages.parameters())


class TestPrefixTokens:
    @pytest.mark.parametrize(
        ("name", "count", "class_token"),
        [
            ("vit_tiny_patch16_224", 1, True),
            ("deit_tiny_distilled_patch16_224", 2, True),
            ("vit_tiny_patch16_dinov3_qkvb", 5, True),
            ("vit_betwixt_patch16_reg4_gap_256", 4, False),
            ("mixer_s32_224", 0, False),
            ("xcit_nano_12_p16_224", 0, False),  # its class token comes in behind the last stage
        ],
    )
    def test_are_counted_and_told_apart(self, name, count, class_token):
        options: dict[str, Any] = {"depth": 4} if "betwixt" in name else {}
        staged = create_staged(name, num_classes=7, image_size=64, **options)
        assert staged.num_prefix_tokens == count
        assert staged.has_class_token == class_token
        prefix = staged.eval()(random_images()).prefixes[2]
        assert (0 if prefix is None else prefix.shape[1]) == count


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", (50, 70)),
        ("convnext_atto", (75, 100)),
        ("mobilenetv2_050", (33, 47)),
        ("swin_pico_patch4_window7_224", (60, 92)),  # neither side divides by 32 or the window
        ("vit_tiny_patch16_224", (48, 80)),
        ("vit_tiny_patch16_dinov3_qkvb", (48, 80)),
        ("pvt_v2_b0", (40, 72)),
        ("test_mambaout", (50, 70)),
    ],
)
def test_sizes_that_divide_by_nothing_and_images_that_are_not_square(name, size):
    staged, images = built(name, size), random_images(size)
    with torch.no_grad():
        features = staged(images)
        assert [tuple(stage.shape[1:]) for stage in features.stages] == [*staged.shapes]
        torch.testing.assert_close(
            features.logits, own_logits(staged, images), rtol=1e-5, atol=1e-5
        )
        own = staged.tail(features.stages[2], features.prefixes[2]).logits
    torch.testing.assert_close(own, features.logits, rtol=1e-5, atol=1e-5)


def test_another_classifier_can_stand_in_for_the_models_own():
    staged = create_staged("test_vit", num_classes=7, image_size=64).eval()
    linear, images = nn.Linear(staged.width, 3), random_images()
    staged.replace_classifier(linear)
    features = staged(images)
    tail = staged.tail(features.stages[2], features.prefixes[2])
    assert staged.num_classes == 3
    torch.testing.assert_close(features.logits, linear(features.pooled))
    torch.testing.assert_close(tail.logits, features.logits)
    with pytest.raises(ModelError, match=r"takes vectors of 5, .* gives 64"):
        staged.replace_classifier(nn.Linear(5, 3))


class TestNormalisation:
    def test_each_model_uses_its_own_mean_and_standard_deviation(self):
        images = random_images()
        for name, mean in (("resnet18", 0.485), ("vit_tiny_patch16_224", 0.5)):
            prepared = built(name).prepare(images)
            std = 0.229 if mean == 0.485 else 0.5
            torch.testing.assert_close(prepared[:, 0], (images[:, 0] - mean) / std)

    def test_the_same_weights_under_another_mean_score_otherwise(self):
        plain = built("resnet18")
        module = copy.deepcopy(plain.model)
        module.pretrained_cfg = {**module.pretrained_cfg, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        shifted, images = StagedModel(module, image_size=64).eval(), random_images()
        with torch.no_grad():
            expected = module((images - 0.5) / 0.5)
            torch.testing.assert_close(shifted(images).logits, expected)
            assert not torch.allclose(plain(images).logits, expected, atol=1e-3)

    @pytest.mark.parametrize("given", [32, (80, 48), 128])
    def test_images_of_another_size_are_resized_first(self, given):
        staged, images = built("vit_tiny_patch16_224"), random_images(given)
        resized = F.interpolate(images, (64, 64), mode="bicubic", antialias=True)
        with torch.no_grad():
            expected = own_logits(staged, resized)
            torch.testing.assert_close(staged(images).logits, expected, rtol=1e-5, atol=1e-5)

    def test_is_not_part_of_the_saved_weights(self):
        staged = built("vit_tiny_patch16_224")
        assert set(staged.state_dict()) == {f"model.{key}" for key in staged.model.state_dict()}


class TestProbing:
    @pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
    def test_leaves_weights_and_statistics_untouched(self, name):
        module = timm.create_model(name, num_classes=2)
        before = copy.deepcopy(module.state_dict())
        StagedModel(module, image_size=224)
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[key]), key

    @pytest.mark.parametrize("training", [True, False])
    def test_leaves_every_mode_as_it_was(self, training):
        module = timm.create_model("resnet18").train(training)
        module.get_submodule("layer1").train(not training)
        before = {name: part.training for name, part in module.named_modules()}
        StagedModel(module, image_size=32)
        assert {name: part.training for name, part in module.named_modules()} == before

    def test_takes_no_number_from_the_global_generator(self):
        module = timm.create_model("resnet18")
        before = torch.get_rng_state()
        StagedModel(module, image_size=32)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "kind", "design"),
    [
        ("resnet18", "conv", "map"),
        ("mobilenetv2_100", "conv", "map"),
        ("convnext_atto", "conv", "map"),
        ("poolformer_s12", "conv", "map"),
        ("swin_tiny_patch4_window7_224", "attention", "token"),
        ("vit_tiny_patch16_224", "attention", "token"),
        ("deit_tiny_distilled_patch16_224", "attention", "token"),
        ("mixer_s32_224", "mlp", "token"),
        ("resmlp_12_224", "mlp", "token"),
        ("edgenext_xx_small", "hybrid", "map"),
        ("coatnet_pico_rw_224", "hybrid", "map"),
        # Attention in classes of other names, found by what they compute.
        ("efficientvit_b0", "hybrid", "map"),
        ("shvit_s1", "hybrid", "map"),
        # Matrices that multiply features are weights here: experts, and a spatial gate.
        ("mobilenetv3_small_050", "conv", "map"),
        ("gmlp_ti16_224", "mlp", "token"),
    ],
)
def test_architecture_tells_what_mixes_positions_and_which_branches_suit(name, kind, design):
    staged = built(name)
    assert (staged.kind, staged.branch_design) == (kind, design)


def test_branch_design_can_be_chosen():
    staged = StagedModel(built("resnet18").model, image_size=64, branch_design="token")
    assert staged.branch_design == "token"


class TestRefusals:
    def test_a_model_of_two_levels_is_refused_with_their_number(self):
        with pytest.raises(ModelError, match="has 2 levels of features, 4 are needed, or 3 and"):
            create_staged("vit_tiny_patch16_224", image_size=64, depth=2)

    def test_a_module_that_is_no_timm_model_is_refused(self):
        with pytest.raises(ModelError, match="Linear is no timm classifier: it lacks") as caught:
            StagedModel(nn.Linear(2, 2))
        assert "timm.create_model" in caught.value.hint
