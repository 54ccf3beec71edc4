"""A real browser, and reports of small runs."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.report.small_runs import write_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window; tests that need it skip where there is none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser is installed, none of {', '.join(NAMES)} (make browser)")
    with sync_playwright() as playwright:
        # A container's root has no sandbox, and the page is our own.
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def write_runs(tmp_path) -> Callable[..., Path]:
    """A function that fills a folder: ``write_runs(control=3, kd=3)`` has three seeds of each."""

    def write(*, classes: list[str] | None = None, **arms: int) -> Path:
        folder = tmp_path / "runs"
        for method, seeds in arms.items():
            for seed in range(seeds):
                gain = 0.05 if method == "ofa" else 1.2
                path = folder / f"{method}_seed{seed}"
                write_run(path, method=method, seed=seed, gain=gain, classes=classes)
        return folder

    return write
