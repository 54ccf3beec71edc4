"""What every test shares."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

WriteImages = Callable[..., Path]

# Two cores, several pytest workers: one thread each is fastest and leaves sums in one order.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # also where a test imports onnxruntime before anykd
os.environ["COLUMNS"] = "200"  # error lines are not wrapped

DEV_DATA = Path(os.environ.get("ANYKD_DEV_DATA", Path(__file__).parents[2] / "shared" / "data"))


# torch tells of each tensor that a checkpoint takes: hundreds of lines below every failure.
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.INFO)


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


@pytest.fixture
def write_images(tmp_path) -> WriteImages:
    """A function that fills class folders: ``write_images("train", cat=2, dog=1)``."""

    def write(where: str = ".", **counts: int) -> Path:
        rng = np.random.default_rng(0)
        for name, count in counts.items():
            folder = tmp_path / where / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, size=(12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
        return tmp_path

    return write
