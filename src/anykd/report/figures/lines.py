"""Lines over epochs, with a band where several seeds were averaged, and shares that add up to 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .svg import DASHES, MUTED, draw, line_style

__all__ = ["Line", "line_chart", "reliability_chart", "share_chart"]

_MARKED = 25
"""A line with at most so many points shows them."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: What it is.
        number: Of its colour, dash and marker (`line_style`).
        x: Where its points are, in ascending order.
        y: Their values.
        std: Standard deviations over seeds, drawn as a band; None for one seed.
        faint: Whether it is beside the point, and drawn so.
    """

    label: str
    number: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    std: tuple[float, ...] | None = None
    faint: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    x: str = "epoch",
    y: str = "",
    level: float | None = None,
    log: bool = False,
) -> Markup:
    """Draw lines over a common axis.

    Args:
        lines: At least one.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        level: The teacher's value, a horizontal line.
        log: Whether the vertical axis is logarithmic.
    """

    def plot(axes: Axes) -> None:
        for line in lines:
            style = _style(line)
            if line.std is not None:
                low = [value - std for value, std in zip(line.y, line.std, strict=True)]
                high = [value + std for value, std in zip(line.y, line.std, strict=True)]
                axes.fill_between(line.x, low, high, color=style["color"], alpha=0.16, linewidth=0)
            axes.plot(line.x, line.y, **style)
        if level is not None:
            style = line_style(-1) | {"marker": ""}
            axes.axhline(level, **style, linewidth=1.4)
        if log:
            axes.set_yscale("log")
        else:
            axes.margins(y=0.08)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "epoch"))

    return draw(plot, xlabel=x, ylabel=y)


def share_chart(lines: Sequence[Line], *, x: str = "epoch") -> Markup:
    """Draw shares of a whole as bands that lie on each other.

    Args:
        lines: One for each part, over the same points.
        x: What the horizontal axis is.
    """

    def plot(axes: Axes) -> None:
        colours = [line_style(line.number)["color"] for line in lines]
        axes.stackplot(lines[0].x, *(line.y for line in lines), colors=colours, alpha=0.85)
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return draw(plot, xlabel=x)


def reliability_chart(lines: Sequence[Line]) -> Markup:
    """Draw accuracy over confidence, with the diagonal on which the two are the same.

    Args:
        lines: Shares of 1, one line for each model.
    """

    def plot(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, dashes=DASHES[2])
        for line in lines:
            axes.plot(line.x, line.y, **_style(line), clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        ticks, labels = [0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"]
        axes.set_xticks(ticks, labels)
        axes.set_yticks(ticks, labels)

    return draw(plot, width=4.2, height=4.0, xlabel="confidence", ylabel="accuracy")


def _style(line: Line) -> dict[str, Any]:
    style = line_style(line.number) | {"markersize": 3.4}
    if len(line.x) > _MARKED:
        style["marker"] = ""
    return style | ({"linewidth": 1.1, "alpha": 0.7} if line.faint else {})
