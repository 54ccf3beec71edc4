"""L2G: what a front model's stage 3 becomes before another model's tail."""

import copy
import functools

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from anykd.models import StagedModel, create_staged
from anykd.models.batchnorm import batch_statistics_kept
from anykd.models.fusion import L2G

TAILS = {
    "resnet18": (64, 96),
    "swin_pico_patch4_window7_224": (64, 64),
    "vit_tiny_patch16_224": (64, 96),
    "deit_tiny_distilled_patch16_224": (64, 64),
    "resmlp_12_224": (64, 64),
}


@functools.cache
def tail_model(name: str) -> StagedModel:
    return create_staged(name, num_classes=7, image_size=TAILS[name]).eval()


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("front", [(10, 4, 4), (10, 8, 12), (10, 2, 2), (10, 5, 3), (10, 1, 1)])
def test_output_has_the_geometry_that_the_tail_takes(name, front):
    tail = tail_model(name)
    stage, prefix = L2G(front, tail)(torch.randn(2, *front))
    assert stage.shape == (2, *tail.shapes[2])
    assert (prefix is None) == (tail.num_prefix_tokens == 0)
    with torch.no_grad():
        assert tail.tail(stage, prefix).logits.shape == (2, 7)


class TestPrefixTokens:
    def test_start_as_the_class_token_with_the_first_position(self):
        tail = copy.deepcopy(tail_model("vit_tiny_patch16_224"))
        nn.init.normal_(tail.model.cls_token)
        prefix = L2G((10, 4, 4), tail).prefix
        expected = tail.model.cls_token + tail.model.pos_embed[:, :1]
        assert prefix is not None
        assert torch.equal(prefix, expected)
        assert prefix.requires_grad
        assert prefix.is_leaf

    def test_start_as_class_and_distillation_token_of_a_distilled_deit(self):
        tail = copy.deepcopy(tail_model("deit_tiny_distilled_patch16_224"))
        nn.init.normal_(tail.model.cls_token)
        nn.init.normal_(tail.model.dist_token)
        prefix = L2G((10, 4, 4), tail).prefix
        own = torch.cat([tail.model.cls_token, tail.model.dist_token], dim=1)
        assert prefix is not None
        assert torch.equal(prefix, own + tail.model.pos_embed[:, :2])

    def test_are_trained_without_touching_the_tails_own(self):
        tail = copy.deepcopy(tail_model("vit_tiny_patch16_224"))
        l2g, before = L2G((10, 4, 4), tail), tail.model.cls_token.clone()
        assert l2g.prefix is not None
        with torch.no_grad():
            l2g.prefix.add_(1)
        assert torch.equal(tail.model.cls_token, before)

    @pytest.mark.parametrize("name", ["resnet18", "resmlp_12_224"])
    def test_and_positions_are_absent_where_the_tail_has_none(self, name):
        l2g = L2G((10, 4, 4), tail_model(name))
        assert l2g.prefix is None
        assert l2g.position is None


class TestL2G:
    def test_is_embedding_norm_position_and_one_swin_block(self):
        tail, stage = tail_model("vit_tiny_patch16_224"), torch.randn(2, 10, 4, 4)
        l2g = L2G((10, 4, 4), tail)
        assert isinstance(l2g.block, SwinTransformerBlock)
        assert l2g.position is not None
        x = l2g.norm(l2g.embed(stage).permute(0, 2, 3, 1)) + l2g.position
        made, _ = l2g(stage)
        torch.testing.assert_close(made, l2g.block(x).permute(0, 3, 1, 2))

    def test_without_attention_is_embedding_and_norm(self):
        l2g, stage = L2G((10, 4, 4), tail_model("vit_tiny_patch16_224"), attention=False), None
        stage = torch.randn(2, 10, 4, 4)
        made, prefix = l2g(stage)
        assert prefix is None
        assert {name.split(".")[0] for name, _ in l2g.named_parameters()} == {"embed", "norm"}
        torch.testing.assert_close(made.mean(1), torch.zeros(2, 4, 6), rtol=0, atol=1e-5)

    def test_has_heads_of_width_32_and_a_window_no_larger_than_the_grid(self):
        block = L2G((10, 4, 4), tail_model("vit_tiny_patch16_224")).block
        assert isinstance(block, SwinTransformerBlock)
        assert block.attn.num_heads == 192 // 32
        assert tuple(block.window_size) == (4, 6)

    def test_names_its_tokens_positions_and_tables_as_free_of_weight_decay(self):
        l2g = L2G((10, 4, 4), tail_model("vit_tiny_patch16_224"))
        names = {name for name, _ in l2g.named_parameters()} & l2g.no_weight_decay()
        assert names == {"prefix", "position", "block.attn.relative_position_bias_table"}


class TestBatchStatisticsKept:
    def test_running_statistics_stay_and_move_again_afterwards(self):
        norm = nn.BatchNorm2d(3)
        before = copy.deepcopy(norm.state_dict())
        x = 5 + 2 * torch.randn(4, 3, 8, 8)
        with batch_statistics_kept((nn.Sequential(norm),)):
            norm(x)
        assert torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]
        assert torch.equal(norm.running_var, before["running_var"])  # type: ignore[arg-type]
        norm(x)
        assert not torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]
        assert norm.momentum == 0.1

    def test_a_norm_still_uses_the_batch(self):
        norm, x = nn.BatchNorm2d(3), 5 + 2 * torch.randn(4, 3, 8, 8)
        with batch_statistics_kept((norm,)):
            inside = norm(x)
        assert torch.equal(inside, norm(x))

    def test_momentum_comes_back_after_an_error(self):
        norm = nn.BatchNorm2d(3, momentum=0.3)
        with pytest.raises(RuntimeError), batch_statistics_kept((norm,)):
            raise RuntimeError
        assert norm.momentum == 0.3
