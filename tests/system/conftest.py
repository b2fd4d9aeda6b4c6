"""A real browser, which Debian's package `chromium` or Google's brings; a process's signals."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


@contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # In CI a missing browser must not pass for a tested page.
    if BROWSER is None and "CI" not in os.environ:
        pytest.skip("needs Chromium (Debian: chromium)")
    with running_browser() as started:
        yield started


@pytest.fixture
def signals() -> Iterator[None]:
    """A worker keeps those of its process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
