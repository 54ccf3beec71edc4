"""What every test shares."""

import os
from pathlib import Path

import pytest
import torch

# Two cores, several pytest workers: one thread each is fastest and leaves sums in one order.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["COLUMNS"] = "200"  # error lines are not wrapped

DEV_DATA = Path(os.environ.get("ANYKD_DEV_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give every test the same random numbers, in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """Folder of real images for development; tests that need it skip where it is absent."""
    if not DEV_DATA.is_dir():
        pytest.skip(f"real images are not at {DEV_DATA} (set ANYKD_DEV_DATA)")
    return DEV_DATA
