"""The report as a person sees it: written by the real command, opened in a real browser."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from studies.report import write_report
from studies.storage import open_storage
from tests.studies.test_report import (
    SECTIONS,
    grid_of_one_parameter,
    none_finished,
    recorded,
    without_numbers,
)

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")

# In CI a missing browser must not pass for a tested report.
pytestmark = pytest.mark.skipif(
    BROWSER is None and "CI" not in os.environ, reason="needs Chromium (Debian: chromium)"
)

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 800},
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def opened(browser: Browser, file: Path, options: dict[str, Any] = DESKTOP) -> Page:
    """The page, when all of its figures are drawn; nothing went wrong and nothing was fetched."""
    page = browser.new_context(offline=True, **options).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: wrong.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function(
        "[...Object.keys(report.figures)].every((id) => "
        "document.getElementById(id).querySelector('svg'))"
    )
    assert wrong == [file.as_uri()]
    return page


def hover_text(page: Page, place: str, trace: str) -> str:
    """What is shown when the first point of a trace is pointed at."""
    return str(
        page.evaluate(
            """([place, name]) => {
                const curve = document.getElementById(place).data.findIndex((t) => t.name == name);
                Plotly.Fx.hover(place, [{ curveNumber: curve, pointNumber: 0 }]);
                return document.querySelector(`#${place} .hoverlayer`).textContent;
            }""",
            [place, trace],
        )
    )


def test_the_command_writes_a_page_that_shows_the_study(
    hpsearch: Hpsearch, browser: Browser, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    grid_of_one_parameter(open_storage(url, create=True))
    result = hpsearch("report", "grid", "--json", "numbers.json", HPSEARCH_STORAGE=url)
    assert (result.returncode, result.stdout) == (0, "grid-report.html\n"), result.stderr
    assert result.stderr == ""

    document = json.loads((tmp_path / "numbers.json").read_text())
    assert [trial["value"] for trial in document["trials"]] == [0.25, 0.75, 0.5]
    assert [step["best"] for step in document["progress"]] == [0.25, 0.75, 0.75]
    assert [step["epochs"] for step in document["progress"]] == [2, 4, 6]
    assert [worker["runs"] for worker in document["workers"]] == [2, 1]

    page = opened(browser, tmp_path / "grid-report.html")
    assert page.title() == "grid"
    for section in SECTIONS:
        assert page.locator(f"section#{section}").is_visible()
    drawn = page.evaluate("report.figures['best-over-epochs'].data[1]")
    assert (drawn["x"], drawn["y"]) == ([2, 4, 6], [0.25, 0.75, 0.75])
    said = hover_text(page, "curves", "best (trial 1)")
    assert "trial 1, epoch 1: 37.50%" in said
    assert "x 0.75" in said


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_a_page_of_300_trials_is_to_be_read_on_a_desk_and_on_a_phone(
    browser: Browser, tmp_path: Path, device: str
) -> None:
    file = tmp_path / "recorded.html"
    write_report(recorded(300), file)
    page = opened(browser, file, DESKTOP if device == "desktop" else PHONE)
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], "only tables and wide figures scroll sideways"
    figures = [
        *("best-over-epochs", "best-over-time", "curves", "importances"),
        *("pair-surface", "parallel", "runs", *(f"slice-{index}" for index in range(8))),
    ]
    for figure in figures:
        assert page.locator(f"section #{figure} svg").first.is_visible()
    assert page.locator("section .empty").count() == 0
    # Plotly says so in the figure's place, and without an error, also if it is kept from its code.
    assert page.get_by_text("WebGL is not supported").count() == 0
    said = hover_text(page, "curves", "pruned")
    assert "trial 1, epoch 1" in said
    assert "learning_rate" in said
    picture = tmp_path / "report.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 100_000


def test_pages_of_unusual_studies_open_without_an_error(browser: Browser, tmp_path: Path) -> None:
    for study in (none_finished, without_numbers):
        file = tmp_path / f"{study.__name__}.html"
        write_report(study(), file)
        page = opened(browser, file)
        assert page.locator("section").count() == len(SECTIONS)
        page.context.close()


def test_a_study_that_is_not_there_is_said_in_a_line(hpsearch: Hpsearch, tmp_path: Path) -> None:
    missing = hpsearch("report", "nothing")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "no such file yet" in missing.stderr
    assert list(tmp_path.iterdir()) == []
