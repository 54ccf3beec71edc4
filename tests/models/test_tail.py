"""Stage 4 and the head, run from a stage-3 map: exactly what the model itself computes."""

import copy

import pytest
import torch
from torch import nn

from anykd.errors import AnykdError, ModelError
from anykd.methods import METHODS, build_method
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.models.tail import ModuleTail
from tests.models.moved import move_weights

SMALLEST = {
    "ResNet": "resnet18",
    "MobileNetV2": "mobilenetv2_050",
    "EfficientNet": "efficientnet_b0",
    "ConvNeXt": "convnext_atto",
    "Swin": "swin_pico_patch4_window7_224",
    "ViT": "vit_tiny_patch16_224",
    "DeiT": "deit_tiny_patch16_224",
    "DeiT distilled": "deit_tiny_distilled_patch16_224",
    "Mixer": "mixer_s32_224",
    "ResMLP": "resmlp_12_224",
}

# How modules hand over a feature, and what they are given beside it.
WAYS = {
    "rotary positions, class token and registers": ("vit_tiny_patch16_dinov3_qkvb", (64, 96)),
    "rotary positions of another kind": ("vit_pe_core_tiny_patch16_384", (64, 96)),
    "relative positions": ("test_vit_relpos", 96),
    "the tail's own class token": ("xcit_nano_12_p16_224", (64, 96)),
    "a class token that comes in at block 10": ("convit_tiny", 64),
    "blocks that take a grid": ("twins_svt_small", (64, 96)),
    "blocks that take and give a grid": ("mvitv2_tiny", 64),
    "maps with channels last": ("test_mambaout", (64, 96)),
    "tokens without a norm behind": ("levit_128s", 64),
    "a classifier that is a convolution": ("dla46x_c", (64, 96)),
    "another window at each size": ("swinv2_cr_tiny_ns_224", 64),
}


def images_for(staged: StagedModel) -> torch.Tensor:
    return torch.rand(2, 3, *staged.image_size)


def assert_tail_is_the_models_own(staged: StagedModel) -> None:
    """Compare both ways to the logits, to 1e-5 of their size, in eval mode."""
    staged.eval()
    with torch.no_grad():
        features = staged(images_for(staged))
        tail = staged.tail(features.stages[2], features.prefixes[2])
    assert features.logits.std() > 1e-3
    for actual, expected in ((tail.logits, features.logits), (tail.pooled, features.pooled)):
        assert (actual - expected).abs().max() <= 1e-5 * max(1, expected.abs().max().item())


@pytest.fixture(scope="module", params=SMALLEST.values(), ids=list(SMALLEST))
def name(request) -> str:
    return request.param


def test_tail_of_stage_3_gives_the_models_own_logits_at_224(name):
    staged = create_staged(name, num_classes=7, image_size=224)
    # Found on fresh weights, where ResMLP's final norm is the identity, and used on moved ones.
    assert staged.has_tail
    move_weights(staged.model)
    assert_tail_is_the_models_own(staged)


def test_tail_of_stage_3_gives_the_models_own_logits_at_another_size_after_a_training_step(name):
    assert_tail_follows_training(name, (64, 96))


@pytest.mark.parametrize(("name", "image_size"), WAYS.values(), ids=list(WAYS))
def test_tail_takes_every_way_of_handing_a_feature_over(name, image_size):
    assert_tail_follows_training(name, image_size)


def assert_tail_follows_training(name: str, image_size: int | tuple[int, int]) -> None:
    staged = create_staged(name, num_classes=7, image_size=image_size).eval()
    assert staged.has_tail
    head = staged.model.get_classifier()
    for part in head if isinstance(head, tuple) else (head,):
        for layer in (part, *part.children()):
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.normal_(layer.weight, std=0.1)  # zeros pass no gradient
    optimizer = torch.optim.Adam(staged.parameters(), lr=1e-2)
    staged(images_for(staged)).logits.square().sum().backward()
    optimizer.step()
    assert_tail_is_the_models_own(staged)


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_distilled_patch16_224"])
def test_finding_a_tail_changes_nothing(name):
    staged = create_staged(name, num_classes=7, image_size=64).train()
    staged.model.get_submodule("layer1" if name == "resnet18" else "blocks.2").eval()
    state, modes = copy.deepcopy(staged.state_dict()), [m.training for m in staged.modules()]
    random = torch.get_rng_state()
    assert staged.has_tail
    assert [module.training for module in staged.modules()] == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in staged.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in staged.parameters())


def test_tail_runs_the_models_own_modules():
    staged = create_staged("vit_tiny_patch16_224", num_classes=7, image_size=64)
    *blocks, norm = staged.tail_modules
    assert [id(m) for m in blocks] == [id(m) for m in staged.model.blocks[10:]]
    assert norm is staged.model.norm


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_gradient_flows_through_the_teachers_tail_and_stops_at_no_weight(name):
    staged = create_staged(name, num_classes=7, image_size=64)
    teacher = FrozenTeacher(staged)
    features = teacher(images_for(staged))
    stage = features.stages[2].clone().requires_grad_()
    prefix = features.prefixes[2]
    inputs = [stage] if prefix is None else [stage, prefix := prefix.clone().requires_grad_()]
    teacher.tail(stage, prefix).logits.square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in inputs)
    assert all(p.grad is None for p in staged.parameters())


class TestRefusals:
    def test_missing_prefix_tokens_are_refused(self):
        staged = create_staged("vit_tiny_patch16_224", num_classes=7, image_size=64)
        with pytest.raises(ModelError, match="takes 1 prefix tokens, got 0"):
            staged.tail(torch.rand(2, *staged.shapes[2]))

    def test_another_number_of_prefix_tokens_is_refused(self):
        staged = create_staged("deit_tiny_distilled_patch16_224", num_classes=7, image_size=64)
        with pytest.raises(ModelError, match="takes 2 prefix tokens, got 1"):
            staged.tail(torch.rand(2, *staged.shapes[2]), torch.rand(2, 1, staged.width))

    def test_a_map_of_other_channels_is_refused(self):
        staged = create_staged("resnet18", num_classes=7, image_size=64)
        with pytest.raises(ModelError, match="takes maps of 256 channels, got 128"):
            staged.tail(torch.rand(2, 128, 4, 4))

    def test_prefix_tokens_that_the_model_lacks_are_refused(self):
        staged = create_staged("resnet18", num_classes=7, image_size=64)
        with pytest.raises(ModelError, match="takes 0 prefix tokens, got 1"):
            staged.tail(torch.rand(2, *staged.shapes[2]), torch.rand(2, 1, 256))

    @pytest.mark.parametrize(
        ("name", "image_size", "reason"),
        [
            ("pit_ti_224", 64, "no sequence of its modules leads from stage 3 to the end"),
            ("crossvit_9_240", 240, "it ends in several features at once"),
            # Its rotary positions are learnt, so what block 10 is given moves with training.
            ("vit_small_patch16_rope_mixed_224", 64, "its stage 4 is given more than its stage 3"),
        ],
    )
    def test_a_model_without_a_tail_is_told_why(self, name, image_size, reason):
        staged = create_staged(name, num_classes=7, image_size=image_size)
        assert not staged.has_tail
        with pytest.raises(ModelError, match=f"has no tail: {reason}") as caught:
            staged.tail(torch.rand(2, *staged.shapes[2]))
        assert "every method but fbt does without" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        ("name", "image_size"), [("pit_ti_224", 64), ("tnt_s_legacy_patch16_224", 64)]
    )
    def test_the_method_that_is_said_to_need_a_tail_is_the_only_one(self, name, image_size):
        student, other = (
            create_staged(name, num_classes=7, image_size=image_size) for _ in range(2)
        )
        refused = {}
        for method in METHODS:
            options = {"num_samples": 8} if method == "crd" else {}
            try:
                build_method(method, student, FrozenTeacher(copy.deepcopy(other)), **options)
            except AnykdError as error:
                refused[method] = error.hint
        assert [*refused] == ["fbt"]
        assert "every method but fbt does without" in refused["fbt"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet18", "layer4"),  # a fresh block adds zero to a map that is rectified already
        ("legacy_seresnet18", "layer4"),  # a ReLU that ends stage 3 is given its map, too
        ("test_efficientnet", "blocks.4"),  # so are a dropout and an identity
    ],
)
def test_begins_where_stage_3_ends(name, first):
    staged = create_staged(name, num_classes=7, image_size=64)
    assert staged.tail_modules[0] is staged.model.get_submodule(first)


def test_what_its_calls_are_given_goes_where_the_model_goes():
    staged = create_staged("vit_tiny_patch16_dinov3_qkvb", num_classes=7, image_size=64)
    tail = staged.require_tail()
    assert isinstance(tail, ModuleTail)
    nn.ModuleList([staged]).double()  # as a method moves its student
    moved = staged.require_tail()
    assert isinstance(moved, ModuleTail)
    rotary = [v for call in moved.calls for v in call.leaves if isinstance(v, torch.Tensor)]
    assert [v.dtype for v in rotary] == [torch.float64] * 2
    assert [call.path for call in tail.calls] == [call.path for call in moved.calls]


def test_a_copied_model_has_a_tail_of_its_own_modules():
    staged = create_staged("resnet18", num_classes=7, image_size=64)
    assert staged.has_tail
    copied = copy.deepcopy(staged)
    assert copied.tail_modules[0] is copied.model.layer4
