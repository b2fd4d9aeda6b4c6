"""How soon can a study be seen in the dashboard?

    python -m tests.benchmarks.dashboard
    python -m tests.benchmarks.dashboard --trials 1000 --rounds 9

A study of complete trials with notes and our figures, on SQLite and on PostgreSQL, in a headless
Chromium that has nothing of it yet, by turns: seconds from the request until the first of all
figures is drawn, and until ours are. Do nothing else on the machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from playwright.sync_api import Browser, expect

from search.draw import draw
from studies.checkpoints import open_checkpoints
from studies.config import load_study_file
from studies.storage import open_storage
from studies.study import create_or_continue
from tests.conftest import running_postgres
from tests.system.conftest import running_browser
from tests.system.served import put_trials, serving

FIRST, OURS = "first figure", "our figures"


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
            for what in (FIRST, OURS):
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
    expect(page.locator(".js-plotly-plot .plot-container").first).to_be_visible(timeout=60_000)
    first = time.perf_counter() - begun
    for title in (
        "Best so far",
        "Learning curves of the best",
        "Importance of the parameters, pruned",
        "Workers: who ran what when",
    ):
        expect(page.get_by_text(title).first).to_be_visible(timeout=60_000)
    ours = time.perf_counter() - begun
    page.close()
    return {FIRST: first, OURS: ours}


if __name__ == "__main__":
    main()
