"""What an export left, and how it compares with the student."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .latency import Latency
from .parity import Parity

__all__ = ["Exported", "table"]


@dataclass(frozen=True)
class Exported:
    """One file or folder for deployment, which was run on held-out images.

    Attributes:
        format: ``timm``, ``torch``, ``onnx`` or ``onnx-int8``.
        path: The file, or timm's folder. Beside it lies ``NAME.json``, which says the same.
        bytes: Of all its files.
        sha256: Of the file, or of timm's ``model.safetensors``.
        parity: How it compares with the student in eager mode.
        latency: On one image and on 32.
        facts: Its input and output, as in its metadata.
    """

    format: str
    path: Path
    bytes: int
    sha256: str
    parity: Parity
    latency: tuple[Latency, ...]
    facts: dict[str, Any]

    @property
    def report(self) -> Path:
        """Where its numbers lie."""
        return self.path.with_name(f"{self.path.name}.json")

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "format": self.format,
            "file": self.path.name,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "parity": asdict(self.parity),
            "latency": [asdict(one) | {"ratio": round(one.ratio, 3)} for one in self.latency],
            **self.facts,
        }


def table(exported: Sequence[Exported]) -> str:
    """Several exports as a table for a terminal."""
    rows = [
        ("format", "MB", "largest difference", "agreement", "top-1", "1 image", "32 images", "file")
    ]
    rows += [_row(one) for one in exported]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    first = exported[0].parity
    student = "" if first.top1 is None else f" The student itself has top-1 {first.top1:.2f} %."
    lines.append(
        f"Compared on {first.num_images} held-out images.{student} Times are medians on this "
        "processor; behind them how many times as fast as eager mode."
    )
    return "\n".join(lines)


def _row(one: Exported) -> tuple[str, ...]:
    parity = one.parity
    times = [f"{found.exported_ms:.2f} ms ({found.ratio:.1f}x)" for found in one.latency]
    return (
        one.format,
        f"{one.bytes / 1e6:.2f}",
        f"{parity.max_logit_difference:.1e}",
        "-" if parity.agreement is None else f"{parity.agreement:.2f} %",
        "-" if parity.exported_top1 is None else f"{parity.exported_top1:.2f} %",
        *times,
        str(one.path),
    )
