"""The page of results, the README's table, and what is printed on the way."""

import re
import statistics
from itertools import groupby
from pathlib import Path

from .results import (
    BARS,
    Ratio,
    Row,
    cached_to_control,
    images_per_second,
    loop_to_step,
    memory_to_floor,
    number,
    published_to_step,
    share_of_matmul,
    step_peak,
    step_to_floor,
)

__all__ = ["PAGE", "README", "about", "check", "render", "with_table"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results" / "speed.md"
README = ROOT / "README.md"
IN_README = ("kd", "ofa", "fbt")
"""The methods of the README's table: those that people come for."""
_TABLE = re.compile(r"(<!-- speed -->\n).*?(<!-- end of speed -->)", re.DOTALL)

_SHOWN = (step_to_floor, loop_to_step, memory_to_floor, published_to_step)

Results = dict[str, list[Row]]
"""Rows by device."""

_HOW = """\
The floor of a step is the sum of three parts, each timed alone: (a) the bare teacher's forward
pass, (b) the bare student's forward pass, cross-entropy, backward pass and optimiser step, (c) the
terms of the method on features that are computed already, forward and backward, with the optimiser
step of what it holds beside the student. Bare is timm's own model, in eval mode without a gradient
or in train mode, on images that are normalised already, in the layout and precision of the step,
and compiled where the step is.

A step is what the trainer takes, with the batch on the device. The loop is the trainer's, with its
data loader, average of weights and metrics, of which a line is written in each measurement. As
published is the same loss in float32, eager, NCHW, with an optimiser that goes through the
parameters one by one and a loss that is read after each step. All arms are timed in one process, in
turn, each round beginning with the next arm. A ratio is taken within a round; shown are the median
over the rounds and, in brackets, what a tenth of them are below and above. Bold is what misses its
bar. Teachers have random weights and images random pixels: their speed counts. At 224 px the images
are JPEGs of 500x375, at 32 px arrays in memory.

The floor's peak of memory is what is always held (weights of both models and of the method's own
modules, the optimiser's state, images) and the larger of what (a) adds to it, and of what (b) and
(c) add together, gradients included; that of the step is what it holds and adds. On a processor
every allocation of one step is recorded, on a GPU its allocator counts. The share of matmul is that
of the speed of a large bf16 matrix product, on a GPU.

What misses its bar, and why, stands in the [log](../log.md).
"""


def about(row: Row, device: str) -> str:
    """A row in a line, for the terminal."""
    words = [f"{row['pair']}, {row['method']}, {row['precision']}"]
    if "step" in row["seconds"]:
        words.append(f"{images_per_second(row, 'step'):.1f} images/s")
    for bar in BARS:
        met = bar.is_met(row, device)
        if met is not None:
            words.append(f"{bar.name} {bar.value(row):.2f}{'' if met else ' (missed)'}")
    if "waits" in row:
        words.append(f"waits {100 * statistics.median(row['waits']):.1f} %")
    return "; ".join(words)


def check(results: Results) -> str:
    """How many rows meet each bar, by device."""
    lines = []
    for device, rows in results.items():
        for bar in BARS:
            found = [bar.is_met(row, device) for row in rows]
            asked = [met for met in found if met is not None]
            if asked:
                word = "met" if all(asked) else "missed"
                lines.append(f"{device}: {bar.name}: {word}, {sum(asked)} of {len(asked)} rows")
    return "\n".join(lines)


def render(results: Results) -> str:
    """The page."""
    lines = ["# How fast a step is", "", "Made by `python -m benchmarks.speed`.", "", _HOW]
    for device, rows in results.items():
        lines += _device(device, rows)
    return "\n".join(lines).rstrip() + "\n"


def _device(device: str, rows: list[Row]) -> list[str]:
    environment = rows[0]["environment"]
    commits = sorted({str(row["environment"]["commit"]) for row in rows})
    lines = [
        f"## {environment['device']}",
        "",
        f"{environment['threads']} threads, torch {environment['packages']['torch']}, timm "
        f"{environment['packages']['timm']}, {environment['platform']}, commit "
        f"{', '.join(commits)}, {environment['started'][:10]}.",
        "",
        "| bar | limit | rows that meet it |",
        "|---|---|---|",
    ]
    for bar in BARS:
        met = [one for one in (bar.is_met(row, device) for row in rows) if one is not None]
        if met:
            limit = bar.limit["cpu" if device == "cpu" else "cuda"]
            sign = "≥" if bar.at_least else "≤"
            lines.append(f"| {bar.name} | {sign} {limit:g} | {sum(met)} of {len(met)} |")
    for (precision, compiled), group in groupby(
        rows, key=lambda row: (row["precision"], row["compile"])
    ):
        how = {False: "", True: ", compiled"}.get(compiled, f", compiled: {compiled}")
        lines += ["", f"### {precision}{how}", ""]
        lines += _methods(list(group), device)
    return [*lines, ""]


def _methods(rows: list[Row], device: str) -> list[str]:
    lines = [
        "| pair, images a step | method | images/s | step ÷ floor | loop ÷ step | waits | "
        "peak MB | peak ÷ floor's | as published ÷ step | share of matmul | n |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cached = []
    for row in rows:
        pair = f"{row['pair']}, {row['batch']}"
        if cached_to_control(row) is not None:
            words = _held(row, device, cached_to_control)
            cached.append(f"| {pair} | {words} | {row['rounds']} |")
            continue
        share = share_of_matmul(row)
        cells = [
            pair,
            row["method"],
            f"{images_per_second(row, 'step'):.1f}",
            _held(row, device, step_to_floor),
            _held(row, device, loop_to_step),
            f"{100 * statistics.median(row['waits']):.1f} %",
            f"{step_peak(row) / 1e6:.0f}",
            _held(row, device, memory_to_floor),
            _held(row, device, published_to_step),
            "–" if share is None else f"{100 * share:.0f} %",
            str(row["rounds"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if cached:
        lines += ["", "| pair, images a step | KD from cache ÷ control | n |", "|---|---|---|"]
    return lines + cached


def _held(row: Row, device: str, ratio: Ratio) -> str:
    """A ratio of a row, bold where a bar for it is missed."""
    found = ratio(row)
    words = f"{found:.2f}" if isinstance(found, float) else str(found)
    missed = any(bar.ratio is ratio and bar.is_met(row, device) is False for bar in BARS)
    return f"**{words}**" if missed else words


def table(results: Results) -> str:
    """The README's table: the methods that people come for, in the precision measured first."""
    lines = [
        "| device | pair | method | images/s | step ÷ floor | loop ÷ step | peak ÷ floor's | "
        "as published ÷ step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rows in results.values():
        for row in rows:
            if row["method"] not in IN_README or row["compile"]:
                continue
            ratios = [number(ratio(row)) for ratio in _SHOWN]
            cells = [
                f"{row['environment']['device']}, {row['precision']}",
                row["pair"],
                row["method"],
                f"{images_per_second(row, 'step'):.1f}",
                *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(text: str, results: Results) -> str:
    """The README with its table as the results have it."""
    return _TABLE.sub(lambda found: found[1] + table(results) + found[2], text)
