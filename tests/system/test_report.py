"""The report as a person sees it: written by the real command, opened in a real browser."""

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
    data_of,
    none_finished,
    one_trial,
    recorded,
    recorded_trials,
)
from tests.studies.trials import found

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

PICTURE = "<img src=x onerror=alert(2)>"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page without a network; at the end it must have had no error, dialog or request."""
    context = browser.new_context(offline=True, viewport={"width": 800, "height": 600})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: wrong.append(request.url))
    yield page
    assert wrong == [page.url]
    context.close()


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


def a_thousand_trials() -> Findings:
    return recorded(1000)


# In CI a missing browser must not pass for a tested report.
def test_the_command_writes_a_page_that_shows_the_study(
    hpsearch: Hpsearch, page: Page, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    trials = [
        (state, {**parameters, "<b>": (HOSTILE, PICTURE)[number % 2]}, accuracies)
        for number, (state, parameters, accuracies) in enumerate(recorded_trials(40))
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

    page.goto((tmp_path / "recorded-report.html").as_uri())
    page.wait_for_function(
        "[...Object.keys(page.figures)].every((id) => "
        "document.getElementById(id).querySelector('svg'))"
    )
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert page.title() == "recorded"
    for section in SECTIONS:
        assert page.locator(f"section#{section} .look").is_visible()
    assert set(page.evaluate("Object.keys(page.figures)")) == {
        *("best-over-epochs", "best-over-time", "curves", "importances", "pair-surface"),
        *("parallel", "runs", *(f"slice-{index}" for index in range(9))),
    }
    # Plotly says so in the figure's place, and without an error, also if it is kept from its code.
    assert page.get_by_text("WebGL is not supported").count() == 0
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

    for study in (one_trial, none_finished, all_pruned, a_thousand_trials):
        figures = data_of(report_page(study()))["figures"]
        drawn = page.evaluate(
            """(figures) => {
                document.body.replaceChildren();
                for (const [id, figure] of Object.entries(figures)) {
                    const place = document.createElement("div");
                    place.id = id;
                    document.body.append(place);
                    draw(id, figure);
                }
                return document.querySelectorAll("body > div > .plot-container").length;
            }""",
            figures,
        )
        assert drawn == len(figures), study.__name__
