"""The evaluation as a person sees it: written by the real command, opened in a real browser."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from data.dataset import CIFAR10_NORMALISATION, load_dataset
from model.exported import Classifier
from model.resnet import ResNet
from search.evaluate import ChosenImage, Subject, evaluate
from search.evaluation_page import page as page_of
from search.run_export import export_study
from studies.storage import open_storage
from tests.search.trained import trained_study

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")

# In CI a missing browser must not pass for a tested page.
pytestmark = pytest.mark.skipif(
    BROWSER is None and "CI" not in os.environ, reason="needs Chromium (Debian: chromium)"
)

SECTIONS = (
    *("summary", "confusion", "classes", "calibration", "robustness"),
    *("convergence", "speed", "mistakes", "features", "models"),
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


def opened(browser: Browser, file: Path, options: dict[str, Any]) -> Page:
    """The page, when all of its figures are drawn; nothing went wrong and nothing was fetched."""
    page = browser.new_context(offline=True, **options).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: wrong.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function(
        "Object.keys(figures).every((id) => document.getElementById(id).querySelector('svg'))"
    )
    assert [said for said in wrong if not said.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], "only tables scroll sideways"
    for section in SECTIONS:
        assert page.locator(f"section#{section}").is_visible()
    assert page.locator("section").count() == len(SECTIONS)
    return page


def test_an_export_and_a_study_side_by_side(
    hpsearch: Hpsearch, browser: Browser, few_images: Path, tmp_path: Path
) -> None:
    url, root = f"sqlite:///{tmp_path / 'a.db'}", tmp_path / "var"
    storage = open_storage(url, create=True)
    trained_study(storage, "roses", str(few_images), root, seed=1)
    trained_study(storage, "tulips", str(few_images), root, seed=2)
    export_study(storage, "roses", root, None, tmp_path / "best", None)
    earlier = {file.name for file in tmp_path.iterdir()}
    # Roses are not asked for: the folder speaks for itself.
    result = hpsearch(
        *("evaluate", "best", "--against", "tulips", "--image", few_images / "test/cat/0.png"),
        HPSEARCH_STORAGE=url,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert {file.name for file in tmp_path.iterdir()} - earlier == {"best-evaluation"}
    output = tmp_path / "best-evaluation"
    assert {file.name for file in output.iterdir()} == {"evaluation.html", "evaluation.json"}

    document = json.loads((output / "evaluation.json").read_text())
    first, second = document["models"]
    assert (first["name"], second["name"]) == ("best", "tulips")
    described = json.loads((tmp_path / "best" / "trial.json").read_text())
    assert first["test_accuracy"] == described["test_accuracy"]
    compared = document["comparison"]
    difference = first["test_accuracy"] - second["test_accuracy"]
    assert compared["difference"] == pytest.approx(difference)
    assert compared["low"] <= difference <= compared["high"]
    (line,) = result.stdout.splitlines()
    assert f"best: test accuracy {first['test_accuracy']:.2%}" in line
    assert f"difference {100 * difference:+.2f} points" in line
    assert line.endswith("best-evaluation/evaluation.html")

    page = opened(browser, output / "evaluation.html", DESKTOP)
    assert page.title() == "best and tulips"
    assert f"{100 * difference:+.2f}" in page.locator("#summary table").inner_text()
    for number, model in enumerate((first, second)):
        drawn = page.evaluate(f"figures['confusion-{number}'].data[0].text")
        assert drawn == model["confusion_matrix"]
        curve = page.evaluate(f"figures['robustness-0'].data[{number}].y")
        noise = model["robustness"]["gaussian noise"]
        assert curve == pytest.approx([model["test_accuracy"], *noise], rel=1e-3)
    assert page.locator("#features img").count() == 2 * 6
    assert page.locator("#features").get_by_text("0.png").first.is_visible()
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_what_a_class_is_called_is_shown_and_not_run_on_a_phone_too(
    browser: Browser, data_cache: Path, tmp_path: Path
) -> None:
    hostile = "<img src=x onerror=alert(1)></script><b>" + "x" * 300
    classes = (hostile + "1", hostile + "2", "\x1b[2Jcat")
    whole = load_dataset("cifar10-mini", data_cache)
    test = whole.test.select((whole.test.labels < 3).nonzero().flatten()[::25])
    dataset = replace(whole, classes=classes, test=test, source=hostile)
    torch.manual_seed(0)
    description = {
        **{"study": hostile, "trial": 0, "parameters": {hostile: hostile}},
        **{"data": {}, "validation_accuracy_per_epoch": []},
    }
    classifier = Classifier(ResNet(3, width=4), classes, CIFAR10_NORMALISATION)
    image = ChosenImage(hostile, test.images[0])
    subject = Subject(hostile, classifier, description)
    found = evaluate(subject, test, image, torch.device("cpu"))
    (tmp_path / "page.html").write_text(page_of([found], dataset, image))
    page = opened(browser, tmp_path / "page.html", PHONE)
    assert page.title() == hostile
    assert page.get_by_text("No curve is recorded").is_visible()
    assert page.locator("#mistakes img").count() == len(found.mistakes) > 0
