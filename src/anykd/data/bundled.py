"""Data sets that need no files: scikit-learn's digits, and images made from their index."""

import re
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Float
from PIL import Image

from anykd.errors import DataError

from .fingerprint import fingerprint_of
from .reader import ArrayReader, Sample, Source

__all__ = ["SyntheticReader", "open_digits", "open_synthetic"]


def open_digits(argument: str) -> Source:
    """Open scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, grey as RGB.

    Raises:
        DataError: If an argument is given.
    """
    if argument:
        raise DataError(f"digits takes no argument, got 'digits:{argument}'", "write: digits")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    grey = np.rint(pixels * (255 / 16)).astype(np.uint8)  # their levels are 0 to 16
    images = np.repeat(grey.reshape(-1, 8, 8, 1), 3, axis=-1)
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", names, ArrayReader(images, labels.tolist()), val=None)


def open_synthetic(argument: str) -> Source:
    """Make images of CLASSES classes, N of each to train on and a quarter of N to evaluate on.

    Args:
        argument: ``CLASSESxN``, such as ``10x100``.

    Raises:
        DataError: If the argument has another form, or there are fewer than two classes.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", argument)
    if not match:
        raise DataError(
            f"synthetic data is written synthetic:CLASSESxN, got 'synthetic:{argument}'",
            "for example synthetic:10x100 is 10 classes with 100 training images each",
        )
    num_classes, per_class = int(match[1]), int(match[2])
    if num_classes < 2:
        raise DataError(f"a classifier needs at least 2 classes, got 'synthetic:{argument}'")
    return Source(
        f"synthetic:{argument}",
        tuple(f"pattern {label}" for label in range(num_classes)),
        SyntheticReader(num_classes, per_class, split=0),
        SyntheticReader(num_classes, max(1, per_class // 4), split=1),
    )


@final
class SyntheticReader:
    """Coloured waves of 64x64 pixels: one pattern per class, shifted and noisy in each image.

    The fingerprint does not notice if NumPy's generators were to draw other numbers.

    Args:
        num_classes: Number of patterns.
        per_class: Images of each.
        split: 0 or 1; the two hold other images of the same classes.
    """

    SIZE = 64
    MAX_SHIFT = 4
    """Pixels, in either direction. The shortest wave has 15, so a shift does not turn a pattern
    into its negative."""
    NOISE = 0.1
    """Standard deviation of a pixel's noise, in the unit of RGB in [0, 1]."""

    in_memory = True

    def __init__(self, num_classes: int, per_class: int, *, split: int) -> None:
        self._split = split
        self.labels = [i % num_classes for i in range(num_classes * per_class)]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what the images are made from."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of("synthetic", f"version 1, split {self._split}", numbers=self.labels)

    def key(self, position: int) -> str:
        """The part and the position, such as ``train/123``."""
        return f"{('train', 'val')[self._split]}/{position}"

    def __getitem__(self, position: int) -> Sample:
        label = self.labels[position]
        rng = np.random.default_rng((self._split, position))
        shift = rng.integers(-self.MAX_SHIFT, self.MAX_SHIFT + 1, size=2)
        pixels = self._pattern(label, shift) + self.NOISE * rng.standard_normal(
            (self.SIZE, self.SIZE, 3)
        )
        image = Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))
        return Sample(image, label, position)

    def _pattern(self, label: int, shift: np.ndarray) -> Float[np.ndarray, "size size 3"]:
        """One plane wave per colour, of 1 to 3 periods a side, in [0.1, 0.9]."""
        rng = np.random.default_rng((2, label))  # 2: neither split
        periods = rng.integers(1, 4, size=(2, 3)) * rng.choice((-1, 1), size=(2, 3))
        offset = rng.uniform(0.3, 0.7, size=3)
        phase = rng.uniform(0, 2 * np.pi, size=3)
        turns = (np.arange(self.SIZE)[:, None] + shift) * (2 * np.pi / self.SIZE)
        rows, columns = turns[:, None, None, 0], turns[None, :, None, 1]
        angle = periods[0] * rows + periods[1] * columns + phase
        return offset + 0.2 * np.cos(angle)
