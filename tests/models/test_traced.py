"""Classifiers taken apart by their graphs: torchvision's, and one that knows nothing of anykd."""

import copy

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from anykd.errors import ModelError
from anykd.models import Backbone, StagedModel
from anykd.models.traced import TracedBackbone, drop_classifier, new_classifier
from tests.models.moved import move_weights

# Per model: image size, options, channels of the last four levels, prefix tokens.
MODELS = {
    "alexnet": (96, {}, (64, 192, 256, 256), 0),
    "convnext_tiny": (64, {}, (96, 192, 384, 768), 0),
    "densenet121": (64, {}, (256, 512, 1024, 1024), 0),
    "efficientnet_b0": (64, {}, (24, 40, 112, 1280), 0),
    "googlenet": (64, {"init_weights": False, "aux_logits": False}, (192, 480, 832, 1024), 0),
    "inception_v3": (139, {"init_weights": False, "aux_logits": False}, (192, 288, 768, 2048), 0),
    "maxvit_t": (224, {}, (64, 128, 256, 512), 0),
    "mnasnet0_5": (64, {}, (16, 24, 48, 1280), 0),
    "mobilenet_v2": (64, {}, (24, 32, 96, 1280), 0),
    "mobilenet_v3_small": (64, {}, (16, 24, 48, 576), 0),
    "regnet_y_400mf": (64, {}, (48, 104, 208, 440), 0),
    "resnet18": (64, {}, (64, 128, 256, 512), 0),
    "shufflenet_v2_x0_5": (64, {}, (24, 48, 96, 1024), 0),
    "squeezenet1_1": (64, {}, (64, 128, 256, 512), 0),
    "swin_t": (64, {}, (96, 192, 384, 768), 0),
    "swin_v2_t": (64, {}, (96, 192, 384, 768), 0),
    "vgg11_bn": (64, {}, (256, 512, 512, 512), 0),
    "vit_b_16": (64, {"image_size": 64}, (768, 768, 768, 768), 1),
}


def make(name: str, num_classes: int = 7) -> nn.Module:
    _, options, _, _ = MODELS[name]
    model = models.get_model(name, weights=None, num_classes=num_classes, **options)
    move_weights(model)
    return model.eval()


def traced(model: nn.Module, size: int) -> TracedBackbone:
    return TracedBackbone(model, image_size=(size, size))


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", MODELS)
class TestTorchvision:
    def test_scores_levels_and_tail_are_the_models_own(self, name):
        size, _, chans, num_prefix_tokens = MODELS[name]
        model, images = make(name), torch.randn(2, 3, size, size)
        backbone = traced(copy.deepcopy(model), size).eval()
        assert isinstance(backbone, Backbone)
        with torch.no_grad():
            levels, final = backbone.forward_stages(images)
            expected = model(images)
            assert torch.equal(backbone.forward_head(final), expected)
            assert torch.equal(backbone(images), expected)
            pooled = backbone.forward_head(final, pre_logits=True)
            staged = StagedModel(backbone, image_size=size, std=(1.0, 1.0, 1.0))
            stage3, prefix = levels[staged.taps[2]]
            assert torch.equal(backbone.forward_tail(stage3, prefix), final)
        assert expected.std() > 1e-4
        assert pooled.shape == (2, staged.width)
        assert tuple(chan for chan, _, _ in staged.shapes) == chans
        assert staged.num_prefix_tokens == num_prefix_tokens
        assert staged.num_classes == 7


class TestTracedBackbone:
    @pytest.mark.parametrize("name", ["resnet18", "swin_t"])
    def test_trains_as_the_model_itself_does(self, name):
        model = make(name).train()
        backbone, images = traced(copy.deepcopy(model), 64), torch.randn(4, 3, 64, 64)
        assert backbone.training
        outputs = []
        for one in (model, backbone):
            torch.manual_seed(5)
            logits = one(images)
            logits.square().sum().backward()
            outputs.append(logits.detach())
        assert torch.equal(*outputs)
        pairs = zip(model.named_parameters(), backbone.model.named_parameters(), strict=True)
        for (key, own), (other, taken) in pairs:
            assert key == other
            torch.testing.assert_close(own.grad, taken.grad)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(backbone.model.state_dict()[key], value)

    def test_a_function_in_train_mode_is_not_left_on_in_eval_mode(self):
        model = Plain(dropout=0.5)
        backbone, images = traced(model, 32), torch.randn(4, 3, 32, 32)
        assert torch.equal(backbone.eval()(images), backbone(images))
        assert not torch.equal(backbone.train()(images), backbone(images))
        # The mode counts, however it was set.
        for part in backbone.modules():
            part.training = False
        assert torch.equal(backbone(images), model(images))

    def test_leaves_no_trace_on_the_model(self):
        model = make("resnet18").train()
        before = copy.deepcopy(model.state_dict())
        state = torch.get_rng_state()
        traced(model, 64)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(part.training for part in model.modules())

    def test_a_copy_has_weights_of_its_own(self):
        backbone, images = traced(make("resnet18"), 64).eval(), torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            copied, before = copy.deepcopy(backbone), backbone(images)
            move_weights(backbone, seed=3)
            assert torch.equal(copied(images), before)
            assert not torch.equal(backbone(images), before)

    def test_another_type_reaches_what_runs(self):
        backbone = traced(make("swin_t"), 64).eval().double()
        with torch.no_grad():
            levels, final = backbone.forward_stages(torch.randn(2, 3, 64, 64).double())
        assert final.dtype == torch.float64
        assert all(stage.dtype == torch.float64 for stage, _ in levels)

    def test_compiles_without_a_break(self, unchecked_shapes):
        backbone, images = traced(make("resnet18"), 64).eval(), torch.randn(2, 3, 64, 64)
        compiled = torch.compile(backbone.forward_stages, backend="eager", fullgraph=True)
        with torch.no_grad():
            levels, final = compiled(images)
            expected, last = backbone.forward_stages(images)
        assert torch.equal(final, last)
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(levels, expected, strict=True))

    def test_images_need_not_be_square(self):
        model, images = make("swin_t"), torch.randn(2, 3, 64, 96)
        backbone = TracedBackbone(model, image_size=(64, 96)).eval()
        with torch.no_grad():
            levels, final = backbone.forward_stages(images)
            assert torch.equal(backbone.forward_head(final), model(images))
        assert [tuple(s.shape[1:]) for s, _ in levels] == [
            (96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3),
        ]  # fmt: skip

    def test_as_many_channels_as_rows_are_still_channels(self):
        backbone = traced(Plain(widths=(16, 8, 4, 2)), 32)
        levels, _ = backbone.forward_stages(torch.randn(2, 3, 32, 32))
        assert [tuple(s.shape[1:]) for s, _ in levels] == [
            (16, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2),
        ]  # fmt: skip

    def test_what_a_shortcut_goes_around_is_no_level(self):
        backbone, images = traced(Shortcuts(), 32), torch.randn(2, 3, 32, 32)
        levels, final = backbone.forward_stages(images)
        assert [tuple(s.shape[1:]) for s, _ in levels] == [
            (8, 16, 16), (8, 8, 8), (8, 4, 4), (8, 2, 2),
        ]  # fmt: skip
        assert torch.equal(backbone.forward_tail(*levels[2]), final)

    def test_blocks_of_one_resolution_are_levels_each(self):
        levels, _ = traced(Isotropic(depth=6), 32).forward_stages(torch.randn(2, 3, 32, 32))
        assert [tuple(s.shape[1:]) for s, _ in levels] == [(8, 8, 8)] * 6

    @pytest.mark.parametrize("name", ["resnet18", "swin_t", "squeezenet1_1", "mobilenet_v3_small"])
    def test_without_its_classifier_it_gives_the_pooled_vector(self, name):
        model, images = make(name), torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            backbone = traced(model, 64).eval()
            _, final = backbone.forward_stages(images)
            pooled = backbone.forward_head(final, pre_logits=True)
            drop_classifier(model)
            headless = traced(model, 64).eval()
            _, final = headless.forward_stages(images)
            found = headless.forward_head(final)
            assert torch.equal(found, headless.forward_head(final, pre_logits=True))
        # SqueezeNet's ReLU behind its classifier is left where it was.
        torch.testing.assert_close(found, pooled.relu() if name == "squeezenet1_1" else pooled)
        assert StagedModel(headless, image_size=64).num_classes == 0

    @pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
    def test_a_new_classifier_stands_where_the_old_one_was(self, name):
        model = make(name)
        keys = set(model.state_dict())
        new_classifier(model, 5)
        assert set(model.state_dict()) == keys
        assert traced(model, 64)(torch.randn(2, 3, 64, 64)).shape == (2, 5)

    def test_a_model_that_asks_what_its_values_are_is_refused(self):
        with pytest.raises(
            ModelError, match=r"Asking cannot be taken apart.*cannot trace"
        ) as caught:
            traced(Asking(), 32)
        assert "forward_stages" in caught.value.hint

    def test_a_model_of_two_levels_is_refused(self):
        with pytest.raises(ModelError, match="Plain has 2 levels of features, 4 are needed"):
            traced(Plain(widths=(8, 8)), 32)

    def test_images_of_a_size_that_it_does_not_take_are_refused_in_words(self):
        flat = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 4))
        with pytest.raises(ModelError, match="Sequential does not take images of 64 x 64 px"):
            traced(flat, 64)

    def test_an_assertion_without_words_is_named(self):
        class Careful(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if type(x) is not torch.Tensor:
                    raise AssertionError
                return x

        with pytest.raises(ModelError, match="cannot trace it: AssertionError"):
            traced(Careful(), 32)

    def test_what_gives_no_scores_is_refused(self):
        with pytest.raises(ModelError, match="Conv2d is no classifier"):
            traced(nn.Conv2d(3, 8, 3), 32)


@pytest.fixture
def unchecked_shapes():
    """The compiler cannot look through the shape checks, which exist in tests only."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Plain(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (8, 12, 16, 20), dropout: float = 0.0) -> None:
        super().__init__()
        chans = (3, *widths)
        pairs = zip(chans, widths, strict=False)
        self.blocks = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.fc = nn.Linear(widths[-1], 5)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return self.fc(F.dropout(x.mean(dim=(2, 3)), self.dropout, training=self.training))


class Shortcuts(nn.Module):
    """Blocks that widen before they shrink, beside a shortcut; they are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.widen = nn.ModuleList(nn.Conv2d(8, 24, 1) for _ in range(3))
        self.shrink = nn.ModuleList(nn.Conv2d(24, 8, 3, stride=2, padding=1) for _ in range(3))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for widen, shrink in zip(self.widen, self.shrink, strict=True):
            x = shrink(widen(x)) + F.avg_pool2d(x, 2)
        return self.fc(x.mean(dim=(2, 3)))


class Isotropic(nn.Module):
    """Residual blocks on one grid, without tokens."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.Sequential(*(Residual() for _ in range(depth)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return x + self.second(x)


class Asking(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)
