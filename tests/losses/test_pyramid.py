"""pyramid_loss against NumPy, against a case by hand and its laws."""

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from anykd.losses import hint_loss, pyramid_loss

SHAPES = [(2, 3, 8, 8), (2, 3, 7, 7), (1, 2, 14, 5), (2, 3, 2, 8), (3, 1, 3, 3), (2, 4, 1, 1)]


@pytest.fixture
def unchecked():
    """Without the shape checks of tests, which the compiler cannot look through."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pooled(maps: np.ndarray, grid: int) -> np.ndarray:
    """Cells that share a row or column where the grid does not divide the map."""
    *_, height, width = maps.shape
    rows, columns = (
        [(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]
        for side in (height, width)
        for count in [min(grid, side)]
    )
    return np.stack(
        [
            np.stack([maps[..., a:b, c:d].mean(axis=(-2, -1)) for c, d in columns], axis=-1)
            for a, b in rows
        ],
        axis=-2,
    )


def expected_loss(student: Tensor, teacher: Tensor, grids: tuple[int, ...] = (4, 2, 1)) -> float:
    """View by view: the full one, then each that is coarser than the maps, by half its weight."""
    s, t = (maps.detach().double().numpy() for maps in (student, teacher))
    views = [((s - t) ** 2).mean()]
    for grid in grids:
        if grid < max(s.shape[-2:]):
            views.append(((pooled(s, grid) - pooled(t, grid)) ** 2).mean())
    weights = [0.5**i for i in range(len(views))]
    return float(np.average(views, weights=weights))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grids", [(4, 2, 1), (5, 3), (1,), ()], ids=str)
def test_matches_numpy(shape, grids):
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    expected = expected_loss(student, teacher, grids)
    assert pyramid_loss(student, teacher, grids=grids).item() == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    student = torch.zeros(1, 1, 2, 2)
    teacher = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    # Full: (1 + 9 + 25 + 49) / 4 = 21; one cell: 16; the grids of 4 and 2 are no coarser.
    assert pyramid_loss(student, teacher).item() == pytest.approx((21 + 16 / 2) / 1.5)


def test_sees_a_shift_everywhere_and_a_pattern_in_full_only():
    maps = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert pyramid_loss(maps + 1, maps).item() == pytest.approx(1)
    assert pyramid_loss(maps + board, maps).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


def test_of_one_position_is_the_hint_loss():
    student, teacher = torch.randn(2, 4, 6, 1, 1)
    assert torch.equal(pyramid_loss(student, teacher), hint_loss(student, teacher))


def test_gradient_is_exact():
    student, teacher = torch.randn(2, 2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pyramid_loss, (student, teacher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(dtype):
    student, teacher = (300 * torch.randn(2, 2, 3, 8, 8)).to(dtype)  # squares overflow float16
    loss = pyramid_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected_loss(student, teacher), rel=1e-5)


def test_other_shapes_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"same shape, got \(1, 2, 4, 4\) and \(1, 2, 4, 5\)"):
        pyramid_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))


@pytest.mark.parametrize("grids", [(1, 2), (2, 2), (2, 0)], ids=str)
def test_grids_that_do_not_fall_are_refused(grids):
    with pytest.raises(ValueError, match="grids must be positive and fall"):
        pyramid_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), grids=grids)


def test_is_one_graph_for_the_compiler(unchecked):
    student, teacher = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    compiled = torch.compile(pyramid_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(student, teacher), pyramid_loss(student, teacher))
