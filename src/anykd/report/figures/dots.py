"""Every run as a dot: the picture above the headline's table."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .svg import INK, TEACHER, draw, line_style

__all__ = ["Dots", "dot_chart"]


@dataclass(frozen=True)
class Dots:
    """The runs of one arm.

    Attributes:
        label: Its name.
        number: Of its colour.
        values: A score for each seed.
        mean: Their mean.
    """

    label: str
    number: int
    values: tuple[float, ...]
    mean: float


def dot_chart(
    rows: Sequence[Dots], *, control: float | None = None, teacher: float | None = None
) -> Markup:
    """Draw a line of dots for each arm.

    Args:
        rows: From top to bottom.
        control: The control's mean, a vertical line to compare with.
        teacher: The teacher's value, another one.
    """

    def plot(axes: Axes) -> None:
        for place, row in enumerate(rows):
            style = line_style(row.number)
            axes.plot([row.mean, row.mean], [place - 0.26, place + 0.26], color=INK, linewidth=2)
            axes.plot(
                row.values,
                [place] * len(row.values),
                linestyle="none",
                marker=style["marker"],
                color=style["color"],
                markersize=6.5,
                alpha=0.85,
            )
        for value, number in ((control, 0), (teacher, TEACHER)):
            if value is not None:
                style = line_style(number)
                line = axes.axvline(value, color=style["color"], linewidth=1.4, zorder=0)
                line.set_linestyle((0, style["dashes"]) if "dashes" in style else "-")
        axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return draw(plot, width=5.2, height=0.6 + 0.3 * len(rows))


def _short(label: str) -> str:
    return label if len(label) <= 28 else f"{label[:27]}…"
