"""What an exported file takes and gives, as its metadata and the JSON beside it have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["INPUT", "Signature", "prepare"]

INPUT = "images"
"""Name of the one input."""

Images = UInt8[Tensor, "batch 3 height width_px"]


@dataclass(frozen=True)
class Signature:
    """What an exported student takes and gives.

    Attributes:
        image_size: (height, width) in pixels.
        mean: Of R, G and B in [0, 1].
        std: Likewise.
        interpolation: How images of another size are resized before they come here.
        crop_pct: Share of the resized short side that is kept, in (0, 1].
        class_names: What each score stands for; empty where nothing is known.
        num_classes: Length of the output; 0 for a student without a classifier, whose output is
            its pooled vector.
        takes_bytes: Whether it takes 8-bit RGB and normalises for itself.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    class_names: tuple[str, ...]
    num_classes: int
    takes_bytes: bool = False

    @property
    def output(self) -> str:
        """Name of the one output."""
        return "logits" if self.num_classes else "features"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        height, width = self.image_size
        if self.takes_bytes:
            given: dict[str, Any] = {
                "name": INPUT,
                "dtype": "uint8",
                "layout": "NHWC",
                "shape": ["batch", height, width, 3],
                "values": "RGB, 0 to 255",
                "normalisation": "inside",
            }
        else:
            given = {
                "name": INPUT,
                "dtype": "float32",
                "layout": "NCHW",
                "shape": ["batch", 3, height, width],
                "values": "(RGB / 255 - mean) / std",
                "normalisation": "before",
            }
        return {
            "input": given | {"mean": list(self.mean), "std": list(self.std)},
            "before": {
                "resize_short_side": _resized(self.image_size, self.crop_pct),
                "interpolation": self.interpolation,
                "crop": "centre",
                "crop_pct": self.crop_pct,
            },
            "output": {
                "name": self.output,
                "num_classes": self.num_classes,
                "classes": list(self.class_names),
            },
        }


def prepare(images: Images, given: Mapping[str, Any]) -> Tensor:
    """Make of images what a file takes, by what its metadata say alone.

    Args:
        images: RGB, of the file's size.
        given: The table ``input`` of `Signature.to_dict`.
    """
    if given["normalisation"] == "before":
        mean, std = (torch.tensor(given[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        return (images.float() / 255 - mean) / std
    return images.permute(0, 2, 3, 1).contiguous()


def _resized(size: tuple[int, int], crop_pct: float) -> int | list[int]:
    """Pixels of the short side before the crop; of both sides where the image is no square."""
    sides = [int(side / crop_pct) for side in size]
    return sides[0] if sides[0] == sides[1] else sides
