"""What four sharded ranks have saved goes on with two of them, or with one process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anykd.distributed import rank, world_size
from anykd.engine import Listener, Trainer, newest_checkpoint, save_checkpoint
from anykd.models.sharding import whole
from anykd.types import Batch
from tests.engine.tiny import config
from tests.methods.for_ranks import build_for_ranks
from tests.methods.small import random_batch
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.distributed

CASES = [("fbt", "adamw"), ("crd", "sgd")]
PER_EPOCH, STOPS_AT = 3, 4
"""Four of six steps: within the second epoch."""


class StoppedHereError(Exception):
    """Four steps are done."""


class Shares:
    """Batches of noise, of which each rank has its share."""

    steps_per_epoch = PER_EPOCH

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        for step in range(skip, PER_EPOCH):
            torch.manual_seed(10 * epoch + step)
            whole_batch = random_batch(8)
            assert whole_batch.labels is not None
            images, labels = whole_batch.images.double(), whole_batch.labels.double()
            yield Batch(images, labels, whole_batch.indices).split(world_size())[rank()]

    def is_even(self, step: int) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def make(name: str, optimizer: str) -> Trainer:
    module = build_for_ranks(name, "vit")
    options = config(fsdp=True, ema_decay=0.9, optimizer=optimizer, peak_lr=0.01, clip_grad=1.0)
    cpu = torch.device("cpu")
    return Trainer(module, module.student, Shares(), options, device=cpu, seed=0)


def state_of(running: Trainer) -> dict[str, Tensor]:
    """Every tensor that a checkpoint takes, whole."""
    return {name: whole(value).detach().clone() for name, value in running.state()[0].items()}


def begin(folder: Path) -> dict[str, Any]:
    return {" ".join(case): _begin(case, folder / " ".join(case)) for case in CASES}


def _begin(case: tuple[str, str], folder: Path) -> dict[str, Tensor]:
    running = make(*case)

    def save(epoch: int, step: int) -> None:
        if running.all_steps_done == STOPS_AT:
            save_checkpoint(folder, STOPS_AT, *running.state())
            raise StoppedHereError

    with pytest.raises(StoppedHereError):
        running.fit(Listener(step=save))
    return state_of(running)


def go_on(folder: Path) -> dict[str, Any]:
    return {" ".join(case): _go_on(case, folder / " ".join(case)) for case in CASES}


def _go_on(case: tuple[str, str], folder: Path) -> dict[str, Any]:
    running = make(*case)
    found = newest_checkpoint(folder)
    assert found is not None
    running.load(found, found.state)
    loaded, position = state_of(running), running.all_steps_done
    logged: list[dict[str, Any]] = []
    running.fit(Listener(log=logged.append))
    losses = [line["loss"] for line in logged]
    return {"loaded": loaded, "position": position, "losses": losses, "end": state_of(running)}


def straight(case: tuple[str, str]) -> tuple[list[float], dict[str, Tensor]]:
    running = make(*case)
    logged: list[dict[str, Any]] = []
    running.fit(Listener(log=logged.append))
    return [line["loss"] for line in logged], state_of(running)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory) -> dict[str, Any]:
    meet = tmp_path_factory.mktemp("four")
    return run_on_ranks(begin, folder, folder=meet, num_ranks=4)[0]


@pytest.fixture(scope="module", params=[2, 1])
def resumed(request, saved, folder, tmp_path_factory) -> list[dict[str, Any]]:
    if request.param == 1:
        return [go_on(folder)]
    meet = tmp_path_factory.mktemp("two")
    return run_on_ranks(go_on, folder, folder=meet, num_ranks=request.param)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_checkpoint_of_four_goes_on_with_fewer(case, saved, resumed):
    losses, end = straight(case)
    for each in resumed:
        found = each[" ".join(case)]
        assert found["position"] == STOPS_AT
        torch.testing.assert_close(found["loaded"], saved[" ".join(case)], rtol=0, atol=0)
        assert found["losses"] == pytest.approx(losses[STOPS_AT:], rel=1e-3)
        if case[1] == "sgd":  # AdamW turns rounding of tiny gradients into whole steps
            torch.testing.assert_close(found["end"], end, rtol=1e-3, atol=1e-5)
