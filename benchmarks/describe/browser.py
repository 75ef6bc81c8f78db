"""The system's Chromium, driven by playwright: for tests of pages and pictures of the documents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


def browser_path() -> str | None:
    """Return the path of an installed Chromium or Chrome; None if there is none."""
    paths = map(shutil.which, NAMES)
    return next((path for path in paths if path), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless browser with an empty profile; raises ValueError if none is installed."""
    program = browser_path()
    if program is None:
        raise ValueError(
            f"no browser: expected one of {', '.join(NAMES)}; on Debian `apt-get install chromium`"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()
