"""The report as a person sees it: written by the command, opened in a real browser."""

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from studies.findings import Findings
from studies.report import report_page
from studies.storage import open_storage
from tests.benchmarks.curves import SPACE
from tests.studies.kinds import (
    HOSTILE,
    SECTIONS,
    all_pruned,
    none_finished,
    one_trial,
    recorded,
    recorded_trials,
)
from tests.studies.trials import found

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

PICTURE = "<img src=x onerror=alert(2)>"


def a_thousand_trials() -> Findings:
    return recorded(1000)


EDGES = (one_trial, none_finished, all_pruned, a_thousand_trials)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page without a network; at the end it must have had no error, dialog or request, but for
    the files that were opened."""
    context = browser.new_context(offline=True, viewport={"width": 800, "height": 600})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    opened: list[str] = []
    page.on("request", lambda request: wrong.append(request.url))
    page.on("framenavigated", lambda at: opened.append(at.url) if at == page.main_frame else None)
    yield page
    assert wrong == opened
    assert all(url.startswith("file:") for url in opened)
    context.close()


def open_report(page: Page, path: Path, study: str) -> None:
    """Open a report and see that each of its sections and figures is there."""
    page.goto(path.as_uri())
    page.wait_for_function(
        "Object.keys(page.figures).every((id) => document.getElementById(id).querySelector('svg'))"
    )
    seen = page.evaluate(
        """[...document.querySelectorAll("section")].filter((section) =>
            [section.querySelector(".look"), section.lastElementChild].every(
                (part) => part.checkVisibility() && part.getBoundingClientRect().height > 0)
        ).map((section) => section.id)"""
    )
    assert tuple(seen) == SECTIONS, study
    # Plotly says so in the figure's place, and without an error, also if it is kept from its code.
    assert page.get_by_text("WebGL is not supported").count() == 0


def line_of_plotly(text: str) -> int:
    return text.partition("<script>")[0].count("\n")


def labels_on_others(page: Page) -> list[str]:
    """Of parallel coordinates, those that lie on another axis's."""
    overlapping: list[str] = page.evaluate(
        """() => {
            const axes = [...document.querySelectorAll("#parallel .axis")].map((axis) =>
                [...axis.querySelectorAll(".tick text")].map((label) =>
                    [label.textContent, label.getBoundingClientRect()]));
            return axes.flatMap((labels, place) => labels.filter(([, at]) =>
                axes.some((others, other) => other !== place && others.some(([, box]) =>
                    at.left < box.right && box.left < at.right &&
                    at.top < box.bottom && box.top < at.bottom)))
            ).map(([text]) => text);
        }"""
    )
    return overlapping


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


def right_edge(place: Locator) -> int:
    """How bright most of it is, from 0 to 255."""
    with Image.open(io.BytesIO(place.screenshot())) as picture:
        edge = picture.convert("L").crop((picture.width - 1, 0, picture.width, picture.height))
    return int(median(edge.tobytes()))


# In CI a missing browser must not pass for a tested report.
def test_the_command_writes_a_page_that_shows_the_study(
    hpsearch: Hpsearch, page: Page, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    trials = [
        (state, {**parameters, "<b>": (HOSTILE, PICTURE)[number % 2]}, accuracies)
        for number, (state, parameters, accuracies) in enumerate(recorded_trials(12))
    ]
    found(
        {"name": "recorded", "space": {**SPACE, "<b>": [HOSTILE, PICTURE]}},
        trials,
        storage=open_storage(url, create=True),
        attributes={"worker": PICTURE, "error": HOSTILE},
    )
    result = hpsearch("report", "recorded", "--json", "numbers.json", HPSEARCH_STORAGE=url)
    assert (result.returncode, result.stdout) == (0, "recorded-report.html\n"), result.stderr
    assert result.stderr == ""

    document = json.loads((tmp_path / "numbers.json").read_text())
    best = max(max(accuracies) for state, _, accuracies in trials if state == "complete")
    assert document["best"]["value"] == document["progress"][-1]["best"] == best
    epochs = sum(len(accuracies) for *_, accuracies in trials)
    assert document["progress"][-1]["epochs"] == document["cost"]["epochs"] == epochs

    report = tmp_path / "recorded-report.html"
    open_report(page, report, "recorded")
    assert page.title() == "recorded"
    assert set(page.evaluate("Object.keys(page.figures)")) == {
        *("best-over-epochs", "best-over-time", "curves", "importances", "pair-surface"),
        *("parallel", "runs", *(f"slice-{index}" for index in range(9))),
    }
    shown = page.evaluate("document.getElementById('best-over-epochs').data[1]")
    assert (shown["x"][-1], shown["y"][-1]) == (epochs, float(f"{best:.4g}"))
    said = hover_text(page, "curves", "pruned")
    assert "trial 1, epoch 1" in said
    assert "learning_rate" in said

    page.set_viewport_size({"width": 390, "height": 800})
    # On a phone only tables and wide figures scroll sideways.
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth", timeout=10_000)
    table = page.locator("#top .scrolls")
    assert right_edge(table) < 230, "a shade says that there is more"
    table.evaluate("(table) => table.scrollTo(table.scrollWidth, 0)")
    assert right_edge(table) == 255

    assert labels_on_others(page) == []

    # In the same file at the same line, plotly's code is not compiled again, which takes long.
    line = line_of_plotly(report.read_text())
    for study in EDGES:
        text = report_page(study())
        report.write_text(text.replace("<body>", "<body>" + "\n" * (line - line_of_plotly(text))))
        open_report(page, report, study.__name__)
