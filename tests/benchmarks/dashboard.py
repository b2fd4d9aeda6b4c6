"""How soon can a study be seen in the dashboard?

    python -m tests.benchmarks.dashboard
    python -m tests.benchmarks.dashboard --trials 1000 --rounds 9

A study of complete trials with notes and our figures, on SQLite and on PostgreSQL, in a headless
Chromium that has nothing of it yet, by turns: seconds from the request until the page is there, its
figures still empty, and until they are drawn with the trials, ours among them. Do nothing else on
the machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from playwright.sync_api import Browser

from search.draw import draw
from studies.checkpoints import open_checkpoints
from studies.config import load_study_file
from studies.storage import open_storage
from studies.study import create_or_continue
from tests.conftest import running_postgres
from tests.system.conftest import running_browser
from tests.system.served import put_trials, serving, wait_for_figures

EMPTY, DRAWN = "the page without figures", "all figures"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {
            "sqlite": f"sqlite:///{root / 'a.db'}",
            "postgresql": stack.enter_context(running_postgres()).new_database().url,
        }
        addresses = {}
        for name, url in urls.items():
            make_study(url, given.trials, root / name)
            served = serving(url, "--directory", str(root / name))
            addresses[name] = stack.enter_context(served)
        browser = stack.enter_context(running_browser())
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
        for _ in range(given.rounds):
            for name, address in addresses.items():
                seconds[name].append(look(browser, f"{address}/studies/1"))
        of = f"{given.rounds} rounds, {os.cpu_count()} cores, Chromium {browser.version}"
        print(f"{of}, optuna-dashboard {version('optuna-dashboard')}", "", sep="\n")
        print(f"| {given.trials} trials, seconds | median | slowest |", "|---|---|---|", sep="\n")
        for name, rounds in seconds.items():
            for what in (EMPTY, DRAWN):
                found = [one[what] for one in rounds]
                print(f"| {name}, {what} | {statistics.median(found):.1f} | {max(found):.1f} |")


def make_study(url: str, trials: int, root: Path) -> None:
    storage = open_storage(url, create=True)
    opened, _ = create_or_continue(storage, load_study_file("quickstart"), "00", enqueued=[])
    put_trials(url, opened, trials)
    draw(opened, storage, open_checkpoints(opened, root, None), 60.0)


def look(browser: Browser, address: str) -> dict[str, float]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    begun = time.perf_counter()
    page.goto(address)
    page.locator(".js-plotly-plot .plot-container").first.wait_for(timeout=60_000)
    empty = time.perf_counter() - begun
    wait_for_figures(page)
    drawn = time.perf_counter() - begun
    page.close()
    return {EMPTY: empty, DRAWN: drawn}


if __name__ == "__main__":
    main()
