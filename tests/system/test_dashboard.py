"""The dashboard as a person sees it: in a real browser, on the real command's server."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from studies.storage import open_storage
from tests.conftest import HPSEARCH

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")

# In CI a missing browser must not pass for a tested dashboard.
pytestmark = pytest.mark.skipif(
    BROWSER is None and "CI" not in os.environ, reason="needs Chromium (Debian: chromium)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Page:
    return browser.new_page(viewport={"width": 1400, "height": 1000})


@contextmanager
def serving(url: str, *arguments: str) -> Iterator[str]:
    """The address of a dashboard."""
    server = subprocess.Popen(
        [HPSEARCH, "dashboard", "--port", "0", *arguments],
        env={**os.environ, "HPSEARCH_STORAGE": url},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split()[0]
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def address(hpsearch: Hpsearch, storage_url: str, tmp_path: Path) -> Iterator[str]:
    """A dashboard that serves a study of three real trials."""
    (tmp_path / "objectives.py").write_text(
        "from model.trial import EpochResult\n"
        "def train(parameters, context):\n"
        "    for epoch in range(1, context.epochs + 1):\n"
        "        yield EpochResult(epoch, parameters['x'] * epoch / 10, 1.0, 100.0, {})\n"
    )
    (tmp_path / "shown.toml").write_text(
        'name = "shown"\n[trial]\nepochs = 5\nobjective = "objectives:train"\n'
        "[space]\nx = [0.25, 0.5, 1.0]\n[sampler]\nname = 'grid'\n[pruner]\nname = 'none'\n"
        "[budget]\ntrials = 3\n"
    )
    result = hpsearch("run", "shown.toml", "--workers", 1, HPSEARCH_STORAGE=storage_url)
    assert result.returncode == 0, result.stderr
    with serving(storage_url) as served:
        yield served


def test_the_study_s_page_lists_its_trials(page: Page, address: str, tmp_path: Path) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    expect(page.get_by_text("shown", exact=False).first).to_be_visible(timeout=20_000)
    page.goto(f"{address}/studies/1/trials")
    for number in range(3):
        button = page.get_by_role("button", name=re.compile(f"Trial {number}"))
        expect(button).to_be_visible(timeout=20_000)
    picture = tmp_path / "dashboard.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000
    assert errors == []


def test_a_person_logs_in_and_what_a_study_is_called_is_not_run(
    browser: Browser, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    hostile = "<img src=x onerror=document.title='run'>"
    study = optuna.create_study(study_name=hostile, storage=open_storage(url, create=True))
    study.set_user_attr(hostile, hostile)
    study.tell(study.ask(), 1.0)
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    with serving(url, "--host", "0.0.0.0", "--password-file", str(password)) as address:
        local = address.replace("0.0.0.0", "127.0.0.1")
        stranger = browser.new_page()
        with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):
            stranger.goto(local)
        credentials = {"username": "anybody", "password": "open sesame"}
        page = browser.new_context(http_credentials=credentials).new_page()  # type: ignore[arg-type]
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(local)
        expect(page.get_by_text(hostile).first).to_be_visible(timeout=20_000)
        page.goto(local.replace("/dashboard", "/dashboard/studies/1"))
        expect(page.get_by_text(hostile).first).to_be_visible(timeout=20_000)
        assert page.title() != "run"
        assert errors == []
