"""OFA's branches: sizes by hand, order of their layers, first weights, and odd grids."""

import itertools

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from anykd.models.branches import MapBranch, TokenBranch, initialise

RESNET18 = {1: 64, 2: 128, 3: 256, 4: 512}


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def kinds(module: nn.Module) -> list[type]:
    return [type(part) for part in module.children()]


def map_branch(stage: int) -> MapBranch:
    """Of ResNet18 taught by Swin-T, 100 classes."""
    return MapBranch(stage, RESNET18[stage], width=768, num_classes=100)


def token_branch(
    stage: int, shape=(192, 14, 14), width: int = 192, target_grid=7, **prefix
) -> TokenBranch:
    """Of DeiT-T at 224 pixels, 100 classes."""
    return TokenBranch(
        stage, shape, width=width, num_classes=100, target_grid=target_grid, **prefix
    )


class TestMapBranch:
    @pytest.mark.parametrize(
        ("stage", "expected"), [(1, 411_748), (2, 397_924), (3, 345_700), (4, 470_884)]
    )
    def test_has_the_papers_number_of_parameters(self, stage, expected):
        assert num_parameters(map_branch(stage)) == expected

    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_has_the_number_of_parameters_that_one_counts_by_hand(self, stage):
        widths = [RESNET18[stage] * 2**i for i in range(4 - stage)] + [768]
        blocks = sum(
            9 * a + a * a + 2 * a + 9 * a + a * b + 2 * b for a, b in itertools.pairwise(widths)
        )
        assert num_parameters(map_branch(stage)) == blocks + 768 * 100 + 100

    def test_block_is_two_separable_convolutions_each_with_norm_and_activation(self):
        block = map_branch(3).blocks[0]
        assert isinstance(block, nn.Sequential)
        norm = [nn.BatchNorm2d, nn.ReLU]
        assert kinds(block) == [nn.Conv2d, nn.Conv2d, *norm, nn.Conv2d, nn.Conv2d, *norm]
        convolutions = [part for part in block if isinstance(part, nn.Conv2d)]
        assert [
            (c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.groups)
            for c in convolutions
        ] == [
            (256, 256, 3, 2, 256),
            (256, 256, 1, 1, 1),
            (256, 256, 3, 1, 256),
            (256, 768, 1, 1, 1),
        ]
        assert all(c.bias is None for c in convolutions)

    def test_of_stage_4_is_one_matrix_pool_and_classifier(self):
        branch, stage = map_branch(4), torch.randn(2, 512, 3, 5)
        convolution = branch.blocks[0]
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        vector = stage.mean((2, 3)) @ convolution.weight[:, :, 0, 0].T + convolution.bias
        expected = vector @ branch.classifier.weight.T + branch.classifier.bias
        torch.testing.assert_close(branch(stage), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_halves_the_grid_once_a_block_and_doubles_the_channels(self, stage):
        x, shapes = torch.randn(2, RESNET18[stage], 16, 16), []
        for block in map_branch(stage).blocks:
            x = block(x)
            shapes.append((x.shape[1], x.shape[2]))
        doubled = [RESNET18[stage] * 2**i for i in range(1, 4 - stage)] + [768]
        assert shapes == [(width, 16 // 2 ** (i + 1)) for i, width in enumerate(doubled)]

    @pytest.mark.parametrize("grid", [(1, 1), (2, 2), (7, 5), (3, 16)])
    @pytest.mark.parametrize("stage", [1, 4])
    def test_takes_small_and_odd_grids(self, grid, stage):
        scores = map_branch(stage)(torch.randn(3, RESNET18[stage], *grid))
        assert scores.shape == (3, 100)
        assert scores.isfinite().all()


class TestTokenBranch:
    @pytest.mark.parametrize(
        ("stage", "expected"), [(1, 1_501_156), (2, 1_056_868), (3, 612_580), (4, 612_580)]
    )
    def test_has_the_papers_number_of_parameters(self, stage, expected):
        assert num_parameters(token_branch(stage)) == expected

    @pytest.mark.parametrize("stage", [1, 2, 3, 4])
    def test_has_the_number_of_parameters_that_one_counts_by_hand(self, stage):
        d = 192
        merging = 2 * 4 * d + 4 * d * d
        block = 2 * 2 * d + 3 * d * d + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
        expected = merging + max(4 - stage, 1) * block + 100 * d + 100
        assert num_parameters(token_branch(stage)) == expected

    @pytest.mark.parametrize(
        ("grid", "target", "count"),
        [(14, 7, 1), (28, 7, 2), (56, 7, 3), (13, 7, 0), (4, 7, 0), (1, 7, 0), (16, 2, 3)],
    )
    def test_merges_down_to_the_target_grid(self, grid, target, count):
        branch = token_branch(2, (24, grid, grid), width=24, target_grid=target)
        assert len(branch.merges) == count
        merged = branch.merges(torch.randn(2, grid, grid, 24))
        assert merged.shape == (2, grid // 2**count, grid // 2**count, 24)

    @pytest.mark.parametrize(("grid", "gelus"), [(14, [1]), (28, [1, 0]), (56, [1, 1, 0])])
    def test_the_last_of_several_mergings_has_no_activation_and_a_single_one_has(self, grid, gelus):
        merges = token_branch(1, (24, grid, grid), width=24).merges
        assert [isinstance(list(m.children())[-1], nn.GELU) for m in merges] == [*map(bool, gelus)]

    def test_a_merging_joins_four_neighbours_normalises_and_projects(self):
        merge = token_branch(1, (4, 2, 2), width=4, target_grid=1).merges[0]
        norm, project, _ = merge.children()
        assert isinstance(project, nn.Linear)
        assert project.bias is None
        x = torch.randn(1, 2, 2, 4)
        row = x[0, [0, 1, 0, 1], [0, 0, 1, 1]].flatten()  # column by column, as Swin does
        expected = nn.functional.gelu(project(norm(row)))
        torch.testing.assert_close(merge(x)[0, 0, 0], expected)

    def test_blocks_are_pre_norm_of_four_heads_without_bias_of_the_queries(self):
        blocks = token_branch(1).blocks
        assert kinds(blocks) == [Block] * 3
        for block in blocks:
            assert isinstance(block, Block)
            assert block.attn.num_heads == 4
            assert block.attn.get_submodule("qkv").bias is None

    def test_the_class_token_passes_the_merging_and_is_what_is_scored(self):
        branch = token_branch(3, (24, 14, 14), width=24, num_prefix_tokens=2)
        stage, prefix = torch.randn(2, 24, 14, 14), torch.randn(2, 2, 24)
        tokens = branch.merges(stage.permute(0, 2, 3, 1)).flatten(1, 2)
        tokens = branch.blocks(torch.cat([prefix, tokens], dim=1))
        torch.testing.assert_close(branch(stage, prefix), branch.classifier(tokens[:, 0]))

    def test_registers_take_part_but_the_mean_of_the_patches_is_scored(self):
        registers = {"num_prefix_tokens": 2, "class_token": False}
        branch = token_branch(3, (24, 14, 14), width=24, **registers)
        stage, prefix = torch.randn(2, 24, 14, 14), torch.randn(2, 2, 24)
        tokens = branch.merges(stage.permute(0, 2, 3, 1)).flatten(1, 2)
        tokens = branch.blocks(torch.cat([prefix, tokens], dim=1))
        torch.testing.assert_close(branch(stage, prefix), branch.classifier(tokens[:, 2:].mean(1)))

    def test_prefix_tokens_are_brought_to_the_width_of_the_blocks(self):
        branch = token_branch(3, (24, 14, 14), width=32, num_prefix_tokens=1)
        prefix = torch.randn(2, 1, 24, requires_grad=True)
        branch(torch.randn(2, 24, 14, 14), prefix).sum().backward()
        assert prefix.grad is not None
        assert all(p.grad is not None for p in branch.parameters())

    def test_without_a_class_token_the_mean_of_the_patches_is_scored(self):
        branch, stage = token_branch(3, (24, 14, 14), width=24), torch.randn(2, 24, 14, 14)
        tokens = branch.blocks(branch.merges(stage.permute(0, 2, 3, 1)).flatten(1, 2))
        torch.testing.assert_close(branch(stage), branch.classifier(tokens.mean(1)))

    @pytest.mark.parametrize("grid", [(1, 1), (2, 3), (15, 15), (16, 9), (29, 14)])
    @pytest.mark.parametrize("chan", [24, 12])
    def test_takes_small_odd_and_oblong_grids(self, grid, chan):
        branch = token_branch(2, (chan, *grid), width=24, target_grid=4)
        scores = branch(torch.randn(3, chan, *grid))
        assert scores.shape == (3, 100)
        assert scores.isfinite().all()


class TestInitialise:
    def test_sets_convolutions_norms_and_linear_layers_as_the_paper_does(self):
        branch = map_branch(1)
        for p in branch.parameters():
            nn.init.constant_(p, 9.0)
        initialise(branch)
        for part in branch.modules():
            if isinstance(part, nn.BatchNorm2d):
                assert (part.weight == 1).all()
                assert (part.bias == 0).all()
            elif isinstance(part, nn.Conv2d) and part.weight.numel() > 10_000:
                fan_out = part.out_channels
                assert part.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert branch.classifier.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert branch.classifier.weight.mean().abs() < 1e-3
        assert (branch.classifier.bias == 0).all()

    def test_sets_linear_layers_of_token_branches_too(self):
        branch = token_branch(1)
        for p in branch.parameters():
            nn.init.constant_(p, 9.0)
        initialise(branch)
        for part in branch.modules():
            if isinstance(part, nn.Linear):
                assert part.weight.std().item() == pytest.approx(0.02, rel=0.03)
                assert part.bias is None or (part.bias == 0).all()
            elif isinstance(part, nn.LayerNorm):
                assert (part.weight == 1).all()
                assert (part.bias == 0).all()
