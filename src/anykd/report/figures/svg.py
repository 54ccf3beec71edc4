"""From matplotlib to SVG that takes the page's colours, in light and in dark."""

import io
import re
from collections.abc import Callable
from itertools import count
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

__all__ = ["DASHES", "INK", "MUTED", "NUM_COLOURS", "TEACHER", "draw", "line_colour", "line_dashes", "line_style", "rename_ids"]

NUM_COLOURS = 8
"""Colours of the page; further lines take them again with another dash."""
TEACHER = -1
"""Number of the line that is the teacher's."""

# Stand-ins, which no picture needs itself; `draw` puts the page's variables into their place.
INK, MUTED, GRID, _TEACHER_COLOUR = "#b00001", "#b00002", "#b00003", "#b00004"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", _TEACHER_COLOUR: "teacher"}
_VARIABLES |= {f"#a0000{number}": f"line-{number}" for number in range(NUM_COLOURS)}

DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))
"""Lengths of strokes and gaps, in widths of the line; none is a whole line."""
_MARKERS = "osD^vP*X"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "anykd",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.parse_math": False,  # a dollar sign in a name is one
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "path.simplify_threshold": 0.3,
}


def line_style(number: int) -> dict[str, Any]:
    """How the line of an arm, or of the teacher, looks: colour, dash and marker.

    Args:
        number: Of the arm, from 0, or `TEACHER`.
    """
    marker = "_" if number == TEACHER else _MARKERS[number % len(_MARKERS)]
    variables = {name: colour for colour, name in _VARIABLES.items()}
    style: dict[str, Any] = {"color": variables[line_colour(number)], "marker": marker}
    dash = _dash(number)
    return style | {"dashes": dash} if dash else style


def line_colour(number: int) -> str:
    """The page's variable with the colour of a line.

    Args:
        number: Of the arm, from 0, or `TEACHER`.
    """
    return "teacher" if number == TEACHER else f"line-{number % NUM_COLOURS}"


def line_dashes(number: int) -> str:
    """The dash of a line as SVG has it, for a line two pixels wide.

    Args:
        number: Of the arm, from 0, or `TEACHER`.
    """
    return " ".join(f"{2 * length:g}" for length in _dash(number)) or "none"


def _dash(number: int) -> tuple[float, ...]:
    """Neighbours differ, and so do the lines that share a colour."""
    return DASHES[2] if number == TEACHER else DASHES[(number + number // NUM_COLOURS) % 4]


def draw(
    plot: Callable[[Axes], None], *, width: float = 5.2, height: float = 3.0, **axes: Any
) -> Markup:
    """Let a function draw into axes, and return them as SVG that fills its place.

    Args:
        plot: Draws.
        width: Inches of 72 points; a point is a pixel where the picture has its own size.
        height: As well.
        **axes: Properties of the axes, such as ``xlabel``.
    """
    with rc_context(_STYLE):
        drawing = Drawing(figsize=(width, height), layout="constrained")
        drawing.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # pyright: ignore
        plot(drawing.add_subplot(**axes))
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.savefig(file, format="svg", metadata=nothing, transparent=True)
    return Markup(_inline(file.getvalue()))


def _inline(text: str) -> str:
    """The picture without what a page has already, and with the page's colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    # The fonts of the machine that wrote the report say nothing to the one that shows it.
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg viewBox="{box[1]}" aria-hidden="true" focusable="false">{rename_ids(body)}'


_numbers = count()


def rename_ids(text: str) -> str:
    """Give the ids of one picture names that no other picture of the page has.

    Those that nothing refers to are dropped.
    """
    prefix = f"f{next(_numbers)}-"
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))

    def rename(found: re.Match[str]) -> str:
        return f' id="{prefix}{found[1]}"' if found[1] in used else ""

    text = re.sub(r' id="([^"]+)"', rename, text)
    return re.sub(r"(url\(#|href=\"#)([^)\"]+)", rf"\g<1>{prefix}\g<2>", text)
