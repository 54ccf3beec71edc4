"""A report as a reader without eyes or scripts has it: its text and its elements."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path


@dataclass
class Page:
    """What stands in a page.

    Attributes:
        text: All its text, with single spaces.
        elements: Names and attributes of all elements, in order.
        source: The file's text.
    """

    text: str
    elements: list[tuple[str, dict[str, str | None]]]
    source: str

    def has(self, name: str) -> bool:
        """Whether there is such an element."""
        return any(element == name for element, _ in self.elements)

    def ids(self) -> list[str]:
        """The ids of all elements."""
        return [value for _, given in self.elements if (value := given.get("id"))]


@dataclass
class _Reader(HTMLParser):
    words: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def read_page(path: Path) -> Page:
    """Read a report."""
    source = path.read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(source)
    return Page(" ".join(reader.words), reader.elements, source)
