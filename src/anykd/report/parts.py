"""What a page is made of: tables, figures and their legends, ready to be laid out."""

from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Cell", "Figure", "Key", "Table"]


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What it says.
        arm: Number of the arm whose colour stands before it.
        note: Said below it in small type.
        tone: ``good``, ``bad``, ``quiet`` or ``strong``; never the only sign of what it means.
    """

    text: str
    arm: int | None = None
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a heading for each row.

    Attributes:
        caption: What it shows.
        columns: Its heads; the first is that of the rows' own.
        rows: Their cells.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Key:
    """A line of a legend.

    Attributes:
        label: What the line is.
        line: Number of its colour and dash; -1 is the teacher's.
    """

    label: str
    line: int


@dataclass(frozen=True)
class Figure:
    """A picture with its words.

    Attributes:
        title: What it shows, and in which unit.
        alt: What it says in numbers, for those who do not see it.
        svg: The picture.
        legend: What its lines are; nothing where there is one.
    """

    title: str
    alt: str
    svg: Markup
    legend: tuple[Key, ...] = ()
