"""What was measured: kept by device, compared within rounds, held against the bars."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "BARS",
    "FOLDER",
    "Bar",
    "Ratio",
    "Row",
    "Spread",
    "cached_to_control",
    "every_device",
    "images_per_second",
    "keep",
    "loop_to_step",
    "memory_to_floor",
    "number",
    "path_of",
    "published_to_step",
    "read",
    "share_of_matmul",
    "spread",
    "step_peak",
    "step_to_floor",
]

FOLDER = Path(__file__).resolve().parents[1] / "results"
KEY = ("pair", "method", "precision", "compile")
"""What tells one row from another in the file of a device."""

Row = dict[str, Any]


def path_of(device: str) -> Path:
    """The file of a device."""
    return FOLDER / f"speed-{device}.json"


def read(path: Path) -> list[Row]:
    """All rows of a device; none where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else []


def every_device() -> dict[str, list[Row]]:
    """All rows, by device."""
    paths = sorted(FOLDER.glob("speed-*.json"))
    return {path.stem.removeprefix("speed-"): read(path) for path in paths}


def keep(path: Path, row: Row) -> None:
    """Write a row in place of the one that it is a newer one of."""
    rows = read(path)
    places = [n for n, one in enumerate(rows) if all(one[key] == row[key] for key in KEY)]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    rows.sort(key=lambda one: (one["precision"], str(one["compile"])))
    path.write_text(json.dumps(rows, indent=1) + "\n")


@dataclass(frozen=True)
class Spread:
    """A ratio over the rounds.

    Attributes:
        median: Of the ratios.
        low: A tenth of them are below.
        high: A tenth of them are above.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


Ratio = Callable[[Row], Spread | float | None]
"""Gives a ratio of a row; None where the row has no such thing."""


def spread(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Divide what was measured in the same round, and say how far that spreads."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, high = np.quantile(ratios, (0.1, 0.9))
    return Spread(statistics.median(ratios), float(low), float(high))


def number(ratio: Spread | float | None) -> float | None:
    """A ratio as one number, where there is one."""
    return ratio.median if isinstance(ratio, Spread) else ratio


def floor(row: Row) -> list[float]:
    """Seconds of the floor by round: teacher, student and the method's own modules."""
    seconds = row["seconds"]
    arms = [seconds[arm] for arm in ("teacher", "student", "modules") if arm in seconds]
    return [sum(times) for times in zip(*arms, strict=True)]


def step_to_floor(row: Row) -> Spread | None:
    """The step against the floor."""
    seconds = row["seconds"]
    return spread(seconds["step"], floor(row)) if "step" in seconds else None


def loop_to_step(row: Row) -> Spread | None:
    """The loop with its data against the step."""
    seconds = row["seconds"]
    return spread(seconds["loop"], seconds["step"]) if "loop" in seconds else None


def published_to_step(row: Row) -> Spread | None:
    """A step as published code takes it against ours."""
    seconds = row["seconds"]
    return spread(seconds["published"], seconds["step"]) if "published" in seconds else None


def cached_to_control(row: Row) -> Spread | None:
    """KD from a cache against control."""
    seconds = row["seconds"]
    return spread(seconds["cached"], seconds["control"]) if "cached" in seconds else None


def memory_to_floor(row: Row) -> float | None:
    """Most memory that the step holds against the most that the floor would."""
    if "memory" not in row:
        return None
    rises = row["memory"]["rises"]
    together = rises["student"] + rises.get("modules", 0)
    least = row["memory"]["floor_held"] + max(rises.get("teacher", 0), together)
    return (row["memory"]["held"] + rises["step"]) / least


def step_peak(row: Row) -> int:
    """Bytes of the step at their most."""
    return row["memory"]["held"] + row["memory"]["rises"]["step"]


def images_per_second(row: Row, arm: str) -> float:
    """Images a second of an arm, by its median."""
    return row["batch"] / statistics.median(row["seconds"][arm])


def share_of_matmul(row: Row) -> float | None:
    """The fraction of a large bf16 product's speed that the step reaches; None without a GPU."""
    if not row.get("matmul_flops"):
        return None
    speed = row["flops"]["step"] / statistics.median(row["seconds"]["step"])
    return speed / row["matmul_flops"]


@dataclass(frozen=True)
class Bar:
    """What a ratio is held against.

    Attributes:
        name: What is divided by what.
        ratio: Gives it.
        limit: By type of device.
        methods: That it is for; none is all.
        at_least: Whether the ratio is to be larger.
    """

    name: str
    ratio: Ratio
    limit: dict[str, float]
    methods: tuple[str, ...] = ()
    at_least: bool = False

    def value(self, row: Row) -> float | None:
        """The ratio of a row; None where the bar is not for it."""
        if self.methods and row["method"] not in self.methods:
            return None
        return number(self.ratio(row))

    def is_met(self, row: Row, device: str) -> bool | None:
        """Whether a row of a device meets it; None where it is not for that row."""
        value, limit = self.value(row), self.limit["cpu" if device == "cpu" else "cuda"]
        if value is None:
            return None
        return value >= limit if self.at_least else value <= limit


def _both(limit: float) -> dict[str, float]:
    return {"cpu": limit, "cuda": limit}


BARS = (
    Bar("step ÷ floor", step_to_floor, _both(1.05), ("kd", "dkd", "dist", "rsd")),
    Bar("step ÷ floor, with stages", step_to_floor, _both(1.08), ("ofa", "fbt")),
    Bar("loop ÷ step", loop_to_step, _both(1.05)),
    Bar("KD from cache ÷ control", cached_to_control, _both(1.05)),
    Bar("peak memory ÷ floor's", memory_to_floor, _both(1.15)),
    Bar("as published ÷ step", published_to_step, {"cpu": 2.5, "cuda": 4.0}, at_least=True),
)
