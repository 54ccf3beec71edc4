"""Two ranks against one process."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anykd.distributed import gather_batch, rank, sum_over_ranks, world_size
from anykd.losses import info_nce_loss
from tests.ranks import run_on_ranks


class Towers(nn.Module):
    """Two trained projections, so that a gradient must reach both sides of the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = nn.Linear(6, 4).double(), nn.Linear(5, 4).double()

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(student), self.teacher(teacher)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def whole_batch_gradients(student: Tensor, teacher: Tensor) -> list[Tensor]:
    towers = Towers()
    info_nce_loss(*towers(student, teacher), temperature=0.2).backward()
    return gradients(towers)


def info_nce_step(student: Tensor, teacher: Tensor) -> dict[str, object]:
    """Train on this rank's half, once with the negatives of all ranks and once with its own."""
    half = slice(rank() * 4, rank() * 4 + 4)
    found: dict[str, object] = {}
    for name, gather in (("gathered", gather_batch), ("local", lambda vectors: vectors)):
        towers = DistributedDataParallel(Towers())
        outputs = towers(student[half], teacher[half])
        loss = info_nce_loss(*(gather(vectors) for vectors in outputs), temperature=0.2)
        loss.backward()
        found[name] = {"loss": loss.detach(), "gradients": gradients(towers)}
    return found


def what_collectives_do() -> dict[str, object]:
    row = torch.tensor([[10.0 * rank(), 1.0]], requires_grad=True)
    gathered = gather_batch(row)
    (gathered * torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (rank() + 1)).sum().backward()
    own = torch.tensor([1.0, 10.0]) * (rank() + 1)
    summed = sum_over_ranks(own)
    indices = gather_batch(torch.tensor([rank(), 7]))
    return {
        "rank": rank(),
        "world_size": world_size(),
        "gathered": gathered.detach(),
        "gradient": row.grad,
        "own": own,
        "summed": summed,
        "indices": indices,
        "transposed": gather_batch(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T + rank()),
    }


@pytest.fixture(scope="module")
def collectives(tmp_path_factory) -> list[dict]:
    return run_on_ranks(what_collectives_do, folder=tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    return student, torch.randn(8, 5, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def steps(batch, tmp_path_factory) -> list[dict]:
    return run_on_ranks(info_nce_step, *batch, folder=tmp_path_factory.mktemp("ranks"))


@pytest.mark.distributed
class TestTwoRanks:
    def test_know_their_number(self, collectives):
        assert [found["rank"] for found in collectives] == [0, 1]
        assert [found["world_size"] for found in collectives] == [2, 2]

    def test_gather_the_batch_in_rank_order(self, collectives):
        for found in collectives:
            assert found["gathered"].tolist() == [[0, 1], [10, 1]]

    def test_gather_whole_numbers(self, collectives):
        for found in collectives:
            assert found["indices"].tolist() == [0, 7, 1, 7]

    def test_gather_what_is_not_contiguous(self, collectives):
        for found in collectives:
            assert found["transposed"].tolist() == [[1, 3], [2, 4], [2, 4], [3, 5]]

    def test_a_row_gets_the_gradient_of_every_ranks_loss(self, collectives):
        # Row r weighs (1, 2) or (3, 4) in the loss of rank 0, and twice that in rank 1's.
        assert [found["gradient"].tolist() for found in collectives] == [[[3, 6]], [[9, 12]]]

    def test_sum_a_tensor_and_leave_their_own_alone(self, collectives):
        for found in collectives:
            assert found["summed"].tolist() == [3, 30]
        assert [found["own"].tolist() for found in collectives] == [[1, 10], [2, 20]]

    def test_have_the_loss_of_the_whole_batch(self, steps, batch):
        expected = info_nce_loss(*Towers()(*batch), temperature=0.2)
        for found in steps:
            torch.testing.assert_close(found["gathered"]["loss"], expected.detach())

    def test_train_with_the_gradient_of_the_whole_batch(self, steps, batch):
        expected = whole_batch_gradients(*batch)
        for found in steps:
            torch.testing.assert_close(
                found["gathered"]["gradients"], expected, rtol=1e-12, atol=1e-14
            )

    def test_negatives_of_their_own_alone_would_give_another_gradient(self, steps, batch):
        # So the test above can tell the difference.
        for ours, theirs in zip(
            steps[0]["local"]["gradients"], whole_batch_gradients(*batch), strict=True
        ):
            assert not torch.allclose(ours, theirs, rtol=0.01)


class TestOneProcess:
    def test_is_rank_0_of_1(self):
        assert (rank(), world_size()) == (0, 1)

    def test_gathers_and_sums_nothing(self):
        tensor = torch.randn(3, 2, requires_grad=True)
        assert gather_batch(tensor) is tensor
        assert sum_over_ranks(tensor) is tensor
