"""The heat map of how alike two models' layers are."""

from collections.abc import Sequence

from matplotlib.figure import Figure

__all__ = ["cka_heat_map"]

_PRINTED = 10
"""Layers of a side up to which the values are printed."""
_TICKS = 30
"""Layers that are named along a side, at most."""
_LIGHT = 0.6
"""Value from which on the map's colour is so light that what is printed on it must be dark."""


def cka_heat_map(
    matrix: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    row_model: str = "student",
    column_model: str = "teacher",
) -> Figure:
    """Draw the CKA of every layer of one model with every layer of another.

    The colours always stand for 0 to 1, so that pictures can be compared.

    Args:
        matrix: One row per layer of the first model; in about [0, 1].
        rows: Its layers; the first stands at the bottom, so that depth grows upwards.
        columns: Layers of the other model, from left to right.
        title: Above the picture; it stays text, whatever stands in it.
        row_model: What the first model is called.
        column_model: What the other is called.

    Returns:
        A figure that belongs to no window; the caller saves it.
    """
    width = min(3.0 + 0.55 * len(columns), 12.0)
    height = min(2.0 + 0.5 * len(rows), 12.0)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="magma", origin="lower", aspect="auto")
    every_row, every_column = (-(-len(names) // _TICKS) for names in (rows, columns))
    axes.set_yticks(range(0, len(rows), every_row), [_plain(name) for name in rows[::every_row]])
    axes.set_xticks(
        range(0, len(columns), every_column),
        [_plain(name) for name in columns[::every_column]],
        rotation=45 if len(columns) > _PRINTED else 30,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_ylabel(_plain(row_model))
    axes.set_xlabel(_plain(column_model))
    axes.set_title(_plain(title), fontsize="medium")
    if max(len(rows), len(columns)) <= _PRINTED:
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                color = "black" if value > _LIGHT else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="CKA")
    return figure


def _plain(text: str) -> str:
    """Text in which a dollar is a dollar, and no mathematics."""
    return text.replace("$", r"\$")
