"""A finished run in Python: the student, the numbers, and how they show themselves."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from anykd.report.record import read_run

if TYPE_CHECKING:
    from anykd.export import Exported

__all__ = ["Result"]

_SIGNS = {"good": "\u2713", "note": "\u2022", "warning": "\u26a0"}
_WIDTH, _HEIGHT = 160, 28
_CELL = "padding:.15em 1em .15em 0;text-align:left;border:0;background:none;color:inherit"


@dataclass(frozen=True, repr=False)
class Result:
    """A finished run. Printed, or at the end of a notebook's cell, it is a short table.

    Attributes:
        path: The run directory.
        student: The trained classifier, as ``timm.create_model`` makes it.
        summary: The numbers, as in ``summary.json``.
    """

    path: Path
    student: nn.Module
    summary: dict[str, Any]

    @property
    def top1(self) -> float | None:
        """The student's accuracy on held-out images after the last epoch, in percent.

        None where these have no labels; the summary then holds the ``agreement`` with the teacher.
        """
        return self.summary.get("top1")

    @property
    def agreement(self) -> float | None:
        """Percent of held-out images for which student and first teacher choose the same class.

        None without a teacher whose classes are compared.
        """
        return self.summary.get("agreement")

    def report(self, out: str | Path | None = None) -> Path:
        """Write the run's report, one HTML page that needs nothing else.

        Args:
            out: The file; None takes ``report.html`` in the run directory.

        Returns:
            The file.

        Raises:
            AnykdError: If the run cannot be read, or the file not be written.
        """
        from anykd.report import build_report

        return build_report([self.path], self.path / "report.html" if out is None else Path(out))

    def export(self, *formats: str, **options: Any) -> "tuple[Exported, ...]":
        """Write the student as files for deployment, and compare each with it on held-out images.

        ``result.export("onnx", "timm", int8=True)``

        Args:
            *formats: Of ``timm``, ``onnx`` and ``torch``; none stands for ``onnx``.
            **options: Of `anykd.experiment.export.export_run`, such as ``out``, ``int8`` and
                ``with_preprocessing``.

        Raises:
            AnykdError: If it cannot be exported, or a file does not do what the student does.
        """
        from .export import export_run

        return export_run(self.path, formats or ("onnx",), **options)

    def __repr__(self) -> str:
        rows = [*self._rows(), ("run", str(self.path))]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
        lines += [
            f"{sign} {message}" + (f" ({remedy})" if remedy else "")
            for sign, message, remedy in self._findings()
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same for a notebook: everything inherits its colours, and names stay text."""
        rows = [(name, html.escape(value)) for name, value in self._rows()]
        curve = self._curve()
        if len(curve) > 1:
            rows.append(("by epoch", _sparkline(curve)))
        rows.append(("run", f"<code>{html.escape(str(self.path))}</code>"))
        cells = "".join(
            f'<tr style="background:none"><th scope="row" style="{_CELL};font-weight:600">'
            f'{name}</th><td style="{_CELL}">{value}</td></tr>'
            for name, value in rows
        )
        said = "".join(
            f"<li>{sign} {html.escape(message)}"
            + (f'<br><span style="opacity:.7">{html.escape(remedy)}</span>' if remedy else "")
            + "</li>"
            for sign, message, remedy in self._findings()
        )
        said = f'<ul style="list-style:none;padding-left:0;max-width:45em">{said}</ul>'
        table = f'<table style="border-collapse:collapse;color:inherit">{cells}</table>'
        return f'<div style="color:inherit">{table}{said if self._findings() else ""}</div>'

    def _rows(self) -> Iterator[tuple[str, str]]:
        """The table, without the path: names and values as plain text."""
        found = self.summary
        yield "student", _with(found.get("student", type(self.student).__name__), found.get("top1"))
        for teacher in found.get("teachers", ()):
            yield "teacher", _with(teacher["name"], teacher.get("top1"))
        if "method" in found:
            yield "method", str(found["method"])
        if self.agreement is not None:
            yield "agreement", f"{self.agreement:.2f} % of held-out images have the teacher's class"
        if found.get("parameters") is not None:
            yield "parameters", f"{found['parameters']:,}"
        if found.get("seconds") is not None:
            yield "time", f"{found['seconds']:,.0f} s"

    def _findings(self) -> Sequence[tuple[str, str, str]]:
        """What the numbers say of the run: sign, message and remedy."""
        return [
            (_SIGNS.get(one["severity"], ""), one["message"], one.get("remedy") or "")
            for one in self.summary.get("working") or ()
        ]

    def _curve(self) -> list[float]:
        """The student's top-1 by epoch, or its agreement; nothing where the run is gone."""
        if not (self.path / "recipe.toml").is_file():
            return []
        by = "top1" if self.top1 is not None else "agreement"
        return [epoch[by] for epoch in read_run(self.path).epochs if epoch.get(by) is not None]


def _with(name: str, top1: float | None) -> str:
    return name if top1 is None else f"{name}, top-1 {top1:.2f} %"


def _sparkline(values: Sequence[float]) -> str:
    """A small curve as SVG, in the colour of the text."""
    low, high = min(values), max(values)
    steps, span = len(values) - 1, (high - low) or 1.0
    points = " ".join(
        f"{2 + (_WIDTH - 4) * at / steps:.1f},{_HEIGHT - 2 - (_HEIGHT - 4) * (v - low) / span:.1f}"
        for at, v in enumerate(values)
    )
    said = f"from {values[0]:.2f} % to {values[-1]:.2f} %, at best {high:.2f} %"
    return (
        f'<svg role="img" aria-label="{said}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'style="vertical-align:middle"><polyline points="{points}" fill="none" '
        f'stroke="currentColor" stroke-width="1.5"/></svg> {said}'
    )
