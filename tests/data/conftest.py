"""Image files, written by the tests that read them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImages = Callable[..., Path]


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
