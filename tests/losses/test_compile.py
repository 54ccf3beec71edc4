"""Every loss is one graph for torch.compile, backward pass included."""

import jaxtyping
import pytest
import torch

from anykd.losses import (
    correlation_loss,
    crd_loss,
    dist_loss,
    dkd_loss,
    hint_loss,
    info_nce_loss,
    kd_loss,
    ofa_loss,
    relations,
    rkd_angle_loss,
    rkd_distance_loss,
    rsd_loss,
)


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
        pytest.param(lambda s, t: dkd_loss(s, t, LABELS, temperature=4.0), id="dkd"),
        pytest.param(lambda s, t: dist_loss(s, t, temperature=4.0), id="dist"),
        pytest.param(hint_loss, id="hint"),
        pytest.param(rsd_loss, id="rsd"),
        pytest.param(lambda s, t: info_nce_loss(s, t, temperature=0.07), id="info_nce"),
        pytest.param(
            lambda s, t: info_nce_loss(s, t, temperature=torch.tensor(0.07)), id="info_nce-tensor"
        ),
        pytest.param(lambda s, t: crd_loss(s[:, 0], t, num_samples=50000), id="crd"),
        pytest.param(correlation_loss, id="correlation"),
        pytest.param(
            lambda s, t: correlation_loss(s, t, variant="matrix"), id="correlation-matrix"
        ),
        pytest.param(rkd_distance_loss, id="rkd_distance"),
        pytest.param(rkd_angle_loss, id="rkd_angle"),
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


def test_compiled_rkd_angle_loss_in_blocks_equals_the_eager_one(pair, monkeypatch):
    monkeypatch.setattr(relations, "_BLOCK", 100)  # two corners of six samples at a time
    test_compiled_loss_equals_the_eager_one(rkd_angle_loss, pair)
