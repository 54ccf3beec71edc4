"""MapAligner against the same sums written with NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anykd.models.align import MapAligner


def weights(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def aligned(source: tuple[int, int, int], target: tuple[int, int, int]) -> tuple:
    """An aligner, some maps, and what it makes of them."""
    aligner, stage = MapAligner(source, target), torch.randn(2, *source)
    made = aligner(stage).detach()
    assert made.shape == (2, *target)
    return aligner, stage, made.numpy()


def pointwise(stage: Tensor | np.ndarray, layer: nn.Module) -> np.ndarray:
    weight, bias = weights(layer)
    return np.einsum("bchw,oc->bohw", stage, weight[..., 0, 0]) + bias[:, None, None]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 1)])
def test_equal_grids_are_joined_by_one_matrix(grid):
    aligner, stage, made = aligned((3, *grid), (5, *grid))
    np.testing.assert_allclose(made, pointwise(stage, aligner.project), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "new"), [((8, 8), (4, 4)), ((6, 9), (2, 3)), ((4, 4), (1, 1)), ((4, 6), (2, 3))]
)
def test_a_whole_factor_shrinks_patch_by_patch(grid, new):
    aligner, stage, made = aligned((3, *grid), (5, *new))
    factor = grid[0] // new[0]
    patches = stage.numpy().reshape(2, 3, new[0], factor, new[1], factor)
    weight, bias = weights(aligner.project)
    expected = np.einsum("bcyixj,ocij->boyx", patches, weight) + bias[:, None, None]
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "new"), [((2, 2), (4, 4)), ((2, 3), (6, 9)), ((1, 1), (4, 4))])
def test_a_whole_factor_grows_every_position_into_a_square(grid, new):
    aligner, stage, made = aligned((3, *grid), (5, *new))
    assert isinstance(aligner.project, nn.Sequential)
    factor = new[0] // grid[0]
    wide = pointwise(stage, aligner.project[0]).reshape(2, 5, factor, factor, *grid)
    expected = wide.transpose(0, 1, 4, 2, 5, 3).reshape(2, 5, *new)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "new"), [((7, 7), (4, 4)), ((8, 8), (4, 8)), ((5, 6), (4, 4))])
def test_any_other_smaller_grid_is_averaged_first(grid, new):
    aligner, stage, made = aligned((3, *grid), (5, *new))
    pooled = np.empty((2, 3, *new), np.float32)
    for y, x in np.ndindex(*new):
        rows = slice(y * grid[0] // new[0], -(-(y + 1) * grid[0] // new[0]))
        columns = slice(x * grid[1] // new[1], -(-(x + 1) * grid[1] // new[1]))
        pooled[..., y, x] = stage.numpy()[..., rows, columns].mean((2, 3))
    np.testing.assert_allclose(made, pointwise(pooled, aligner.project), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "new"), [((4, 4), (7, 7)), ((4, 8), (8, 4)), ((2, 2), (4, 6))])
def test_any_other_larger_grid_is_interpolated_first(grid, new):
    aligner, stage, made = aligned((3, *grid), (5, *new))

    def mixing(old: int, size: int) -> np.ndarray:
        matrix = np.zeros((size, old))
        for i in range(size):
            at = min(max((i + 0.5) * old / size - 0.5, 0), old - 1)
            low = int(at)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, old - 1)] += at - low
        return matrix

    rows, columns = (mixing(a, b) for a, b in zip(grid, new, strict=True))
    resized = np.einsum("bchw,yh,xw->bcyx", stage.numpy(), rows, columns)
    np.testing.assert_allclose(made, pointwise(resized, aligner.project), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("new", [(4, 4), (2, 2), (8, 8), (3, 3), (5, 7)])
def test_gradient_reaches_the_map_and_every_weight(new):
    aligner, stage = MapAligner((3, 4, 4), (5, *new)), torch.randn(2, 3, 4, 4, requires_grad=True)
    aligner(stage).square().sum().backward()
    assert stage.grad is not None
    assert stage.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in aligner.parameters())
