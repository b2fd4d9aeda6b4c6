"""A real browser, which Debian's package `chromium` or Google's brings."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # In CI a missing browser must not pass for a tested page.
    if BROWSER is None and "CI" not in os.environ:
        pytest.skip("needs Chromium (Debian: chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()
