"""Every loss is one graph for torch.compile, backward pass included."""

import jaxtyping
import pytest
import torch

from anykd.losses import info_nce_loss, kd_loss, ofa_loss


@pytest.fixture(autouse=True)
def shapes_are_unchecked():
    """The compiler cannot look through the shape checks, which exist in tests only."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda s, t: kd_loss(s, t, temperature=4.0), id="kd"),
        pytest.param(lambda s, t: ofa_loss(s, t, LABELS, gamma=1.5), id="ofa"),
        pytest.param(lambda s, t: info_nce_loss(s, t, temperature=0.07), id="info_nce"),
        pytest.param(
            lambda s, t: info_nce_loss(s, t, temperature=torch.tensor(0.07)), id="info_nce-tensor"
        ),
    ],
)
def test_compiled_loss_equals_the_eager_one(loss, pair):
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager, traced = loss(*pair), compiled(*pair)
    assert traced.item() == pytest.approx(eager.item(), rel=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(traced, pair), torch.autograd.grad(eager, pair), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
