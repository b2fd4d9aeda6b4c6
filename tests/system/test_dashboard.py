"""The dashboard as a person sees it: in a real browser, on the real command's server."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from playwright.sync_api import Browser, Error, Page, expect

from search.draw import draw
from studies.checkpoints import open_checkpoints
from studies.config import load_study_file
from studies.storage import open_storage
from studies.study import create_or_continue
from tests.system.served import put_trials, serving, wait_for_figures

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

SLOWEST_SECONDS = 10.0
"""Until all figures are drawn, on a machine that has other things to do; else it takes 3."""


@pytest.fixture
def page(browser: Browser) -> Page:
    return browser.new_page(viewport={"width": 1400, "height": 1000})


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
    with serving(storage_url, "--directory", str(tmp_path / "var")) as served:
        yield served


def test_the_study_s_page_lists_its_trials(page: Page, address: str, tmp_path: Path) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    expect(page.get_by_text("shown", exact=False).first).to_be_visible(timeout=20_000)
    page.goto(f"{address}/studies/1/trials?numbers=2")
    for number in range(3):
        button = page.get_by_role("button", name=re.compile(f"Trial {number}"))
        expect(button).to_be_visible(timeout=20_000)
    expect(page.get_by_text("A point of the grid.")).to_be_visible()
    expect(page.get_by_text(re.compile("after 5 epochs: best validation"))).to_be_visible()
    # The weights of the trial that is shown.
    expect(page.get_by_text("trial-00002.safetensors").first).to_be_attached()
    picture = tmp_path / "dashboard.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000
    page.goto(f"{address}/studies/1")
    expect(page.get_by_text("model.safetensors").first).to_be_visible(timeout=20_000)
    assert errors == []
    study = page.request.get(f"{root_of(address)}/api/studies/1").json()
    (shown,) = study["trials"][2]["artifacts"]
    path = f"{root_of(address)}/artifacts/1/3/{shown['artifact_id']}"
    answer = page.request.get(path)
    (weights,) = tmp_path.glob("var/shown-*/checkpoints/trial-00002.safetensors")
    assert answer.body() == weights.read_bytes()
    assert "access-control-allow-origin" not in answer.headers
    model = next(item for item in study["artifacts"] if item["filename"] == "model.safetensors")
    answer = page.request.get(f"{root_of(address)}/artifacts/1/{model['artifact_id']}")
    assert answer.body() == next(tmp_path.glob("var/shown-*/best/model.safetensors")).read_bytes()
    assert page.request.delete(path).status == 403
    weights.unlink()
    assert page.request.get(path).status == 404


def root_of(address: str) -> str:
    return address.removesuffix("/dashboard")


def test_the_page_of_300_trials_is_soon_there_with_our_figures(
    page: Page, storage_url: str, tmp_path: Path
) -> None:
    storage = open_storage(storage_url, create=True)
    config = load_study_file("quickstart")
    opened, _ = create_or_continue(storage, config, "00", enqueued=[])
    put_trials(storage_url, opened, 300)
    draw(opened, storage, open_checkpoints(opened, tmp_path, None), 60.0)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    with serving(storage_url, "--directory", str(tmp_path)) as address:
        begun = time.perf_counter()
        page.goto(f"{address}/studies/1")
        wait_for_figures(page)
        took = time.perf_counter() - begun
        for text in (
            "Best so far",
            "Learning curves of the best trials",
            "Importance of the parameters, pruned",
            "Workers: who ran what when",
        ):
            expect(page.get_by_text(text).first).to_be_visible(timeout=20_000)
        requests = page.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
        page.get_by_text("Best so far").first.scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "figures.png")
    assert took < SLOWEST_SECONDS
    early, script = (
        min(index for index, name in enumerate(requests) if name.endswith(end))
        for end in ("/api/studies/1/param_importances", "/static/bundle.js")
    )
    assert early < script
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
