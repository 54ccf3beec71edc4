"""The page in a real browser."""

from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from anykd.report import build_report
from tests.report.small_runs import EVIL, write_run

WIDTHS = (390, 1280)

IS_WIDER = """() => document.documentElement.scrollWidth > window.innerWidth"""
EMPTY_PICTURES = """() => [...document.querySelectorAll(".picture svg, svg.key, img")].filter(
    one => one.checkVisibility() && !(one.getBoundingClientRect().width > 5
                                      && one.getBoundingClientRect().height > 5)).length"""
BROKEN_IMAGES = """() => [...document.images].filter(
    one => !one.complete || one.naturalWidth == 0).length"""
UNNAMED = """() => [...document.querySelectorAll("img, [role=img]")].filter(
    one => !(one.getAttribute("alt") || one.getAttribute("aria-label"))).length"""
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4")].map(
    one => Number(one.tagName[1]))"""
OPEN_ALL = """() => document.querySelectorAll("details").forEach(one => one.open = true)"""
COLOURS = """() => [getComputedStyle(document.body).backgroundColor,
    getComputedStyle(document.body).color,
    getComputedStyle(document.querySelector(".picture svg path[style*=line-1]")).stroke]"""
UNREADABLE = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
    const rgb = colour => {
        canvas.fillStyle = colour
        canvas.fillRect(0, 0, 1, 1)
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
    }
    const light = colour => rgb(colour)
        .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
    const behind = element => {
        for (let one = element; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor
            if (colour != "rgba(0, 0, 0, 0)") return colour
        }
    }
    const found = new Set()
    for (const one of document.querySelectorAll("main *, nav *")) {
        const own = [...one.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())
        if (!own || !one.checkVisibility()) continue
        const svg = one instanceof SVGElement
        const style = getComputedStyle(one)
        const [a, b] = [light(svg ? style.fill : style.color), light(behind(one))]
            .sort((x, y) => y - x)
        const contrast = (a + 0.05) / (b + 0.05)
        if (contrast < 4.5) found.add(`${one.tagName}.${one.className}: ${contrast.toFixed(2)}`)
    }
    return [...found]
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report with every section, and names that want to be scripts."""
    folder = tmp_path_factory.mktemp("report")
    for method in ("control", "kd", "ofa"):
        for seed in range(2):
            write_run(
                folder / f"{method}{seed}",
                method=method,
                seed=seed,
                classes=[EVIL, *"abcdefghijklmnop"],
                student=EVIL,
                teacher=EVIL,
            )
    return build_report([folder], folder / "report.html")


@pytest.fixture
def open_page(browser: Browser):
    """A function that opens a file, and notes what it must not do."""
    pages: list[Page] = []

    def opened(path: Path, *, width: int = 1280, scheme: str = "light") -> tuple[Page, list[str]]:
        wrong: list[str] = []
        page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # pyright: ignore[reportArgumentType]
        )
        pages.append(page)
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: wrong.append(f"request: {request.url[:80]}"))
        page.goto(path.as_uri())
        page.evaluate(OPEN_ALL)
        wrong[:] = [one for one in wrong if one != f"request: {path.as_uri()[:80]}"]
        return page, [one for one in wrong if not one.startswith("request: data:")]

    yield opened
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_whole(width, scheme, report, open_page):
    page, wrong = open_page(report, width=width, scheme=scheme)
    assert wrong == []
    assert not page.evaluate(IS_WIDER)
    assert page.evaluate(EMPTY_PICTURES) == 0
    assert page.evaluate(BROKEN_IMAGES) == 0
    assert page.locator(".picture svg").count() > 10
    assert page.locator("img").count() > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(scheme, report, open_page):
    """A contrast of 4.5 to 1, as WCAG's level AA asks for."""
    page, _ = open_page(report, scheme=scheme)
    assert page.evaluate(UNREADABLE) == []


def test_names_stay_text(report, open_page):
    page, wrong = open_page(report)
    assert page.locator("script").count() == 0
    assert wrong == []
    assert EVIL in page.inner_text("h1")
    assert EVIL in page.inner_text("section[aria-labelledby=e1-classes]")


def test_light_and_dark_differ(report, open_page):
    light, dark = (
        open_page(report, scheme=scheme)[0].evaluate(COLOURS) for scheme in ("light", "dark")
    )
    assert all(a != b for a, b in zip(light, dark, strict=True)), (light, dark)


def test_paper_is_white_also_at_night(report, open_page):
    page, _ = open_page(report, scheme="dark")
    dark = page.evaluate(COLOURS)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(COLOURS)[0] != dark[0]


def test_a_reader_without_eyes_is_told_everything(report, open_page):
    page, _ = open_page(report)
    assert page.evaluate(UNNAMED) == 0
    for landmark in ("main", "nav", "footer"):
        assert page.locator(landmark).count() == 1
    headings = page.evaluate(HEADINGS)
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("table:not(:has(caption))").count() == 0


def test_a_large_comparison_of_two_students_fits_a_phone(tmp_path, open_page):
    names = [f"a class with a rather long name, {number}" for number in range(300)]
    for student, methods in (("resnet18", ("control", "kd")), ("vit", "abcdefghi")):
        for method in methods:
            path = tmp_path / f"{student}_{method}"
            write_run(path, method=method, student=student, classes=names, epochs=3)
    path = build_report([tmp_path], tmp_path / "report.html")
    for width in WIDTHS:
        page, wrong = open_page(path, width=width)
        assert wrong == []
        assert not page.evaluate(IS_WIDER)
        assert page.inner_text("h1") == "2 students compared"
        headings = page.evaluate(HEADINGS)
        assert headings.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(headings))
