from datetime import datetime
from typing import Any

import pytest
from rich.console import Console

from search.launch import Slot
from search.live import (
    View,
    WorkerRow,
    render,
    results_table,
    seconds_left,
    trial_seconds_left,
)
from search.terminal import SafeConsole
from studies.config import load_study_file
from studies.results import TrialRecord, varied_values

CONFIG = load_study_file("quickstart", {"budget.trials": 10, "budget.minutes": 5})
NOW = datetime(2026, 1, 1, 12, 0, 30)
PARAMETERS = dict.fromkeys(CONFIG.space, 0.012345)


def trial(number: int, state: str, *accuracies: float, **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "number": number,
        "state": state,
        "parameters": PARAMETERS,
        "accuracies": accuracies,
        "value": max(accuracies, default=None),
        "worker": f"host-{number}",
        "images_per_second": 1234.0,
        "reason": None,
        "started": datetime(2026, 1, 1, 12, 0, 0),
        "seconds": None if state == "running" else 20.0,
    }
    return TrialRecord(**{**values, **changes})


def view(
    *records: TrialRecord,
    interruptions: int = 0,
    run_started: float = 0.0,
    trouble: str | None = None,
) -> View:
    running = [record for record in records if record.state == "running"]
    rows = [
        WorkerRow(Slot(1, "cpu", {}), running[0] if running else None, state="running"),
        WorkerRow(Slot(2, "cuda:0", {}), None, state="running"),
    ]
    url = "sqlite:///hpsearch.db"
    return View(CONFIG, url, records, rows, NOW, run_started, interruptions, trouble)


def text(shown: View) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(shown))
    return console.export_text()


def test_the_view_says_what_is_wrong_with_the_storage_beside_what_was_known() -> None:
    shown = text(view(trial(0, "complete", 0.5), trouble="the storage has not answered for 9 s"))
    assert "the storage has not answered for 9 s" in shown
    assert "1 complete" in shown


def test_what_is_wrong_with_the_storage_is_not_cut_off_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console = SafeConsole()
    trouble = f"the storage has not answered ({'long' * 30}); training goes on for 600 s"
    with console.capture() as captured:
        console.print(render(view(trial(0, "complete", 0.5), trouble=trouble)))
    lines = captured.get().splitlines()
    first = next(index for index, line in enumerate(lines) if "has not answered" in line)
    assert all(len(line) <= 80 for line in lines[first:])
    assert "600 s" in " ".join(lines[first:])


def test_the_view_shows_counts_the_best_and_a_line_a_worker() -> None:
    shown = text(
        view(
            trial(0, "complete", 0.4, 0.5),
            trial(1, "pruned", 0.1),
            trial(2, "diverged"),
            trial(3, "failed"),
            trial(4, "running", 0.2, 0.25, 0.3),
        )
    )
    assert "3 of 10" in shown
    for count in ("1 complete", "1 pruned", "1 diverged", "1 failed", "1 running"):
        assert count in shown
    assert "best 50.00% validation, trial 0: learning_rate 0.0123" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("1 (cpu)")]
    assert line.split()[2:] == ["4", "3/10", "30.00%", "1,234", "70", "s"]
    assert "2 (cuda:0)" in shown


def test_the_best_configuration_is_not_cut_off_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console = SafeConsole()
    with console.capture() as captured:
        console.print(render(view(trial(0, "complete", 0.4))))
    varied = len(varied_values(trial(0, "complete", 0.4), CONFIG))
    assert captured.get().count("0.0123") == varied > 3
    lines = captured.get().splitlines()
    (first,) = [index for index, line in enumerate(lines) if line.startswith("best ")]
    assert all(len(line) <= 80 for line in lines[first:])


def test_what_never_varies_is_not_shown() -> None:
    assert "width" not in text(view(trial(0, "complete", 0.4)))


def test_workers_of_other_machines_are_shown_too() -> None:
    shown = text(view(trial(0, "running", 0.2), trial(1, "running", 0.3, worker="far-77")))
    assert "far-77" in shown


def test_the_view_says_what_ctrl_c_does() -> None:
    assert "Ctrl-C stops" in text(view())
    assert "Ctrl-C again" in text(view(interruptions=1))
    assert "Stopping now" in text(view(interruptions=2))


def test_the_time_left_in_a_trial_comes_from_its_epochs_so_far() -> None:
    assert trial_seconds_left(trial(0, "running", 0.1, 0.2), 10, NOW) == 120.0
    assert trial_seconds_left(trial(0, "running"), 10, NOW) is None


def test_the_time_left_is_the_budget_s_that_ends_first() -> None:
    done = [trial(number, "complete", 0.1) for number in range(4)]
    minutes_over = view(*done, run_started=0.0)
    assert seconds_left(minutes_over) == 0.0
    trials_first = view(*done, run_started=float("inf"))
    assert seconds_left(trials_first) == 6 * 20 / 2


def test_the_time_left_counts_what_running_trials_have_done() -> None:
    endless = float("inf")
    begun = [trial(4, "running", 0.1), trial(5, "running", *[0.1] * 9)]
    # 270 and 3 s for these two, 20 s for each of the four that nobody has begun.
    done = [trial(number, "complete", 0.1) for number in range(4)]
    assert seconds_left(view(*done, *begun, run_started=endless)) == 270
    many = view(*done, trial(5, "running", *[0.1] * 9), run_started=endless)
    assert seconds_left(many) == pytest.approx((30 / 9 + 5 * 20) / 2)
    # Before any has ended, as long as the first ones will have taken.
    assert seconds_left(view(*begun, run_started=endless)) == pytest.approx(
        (270 + 30 / 9 + 8 * (300 + 30 + 30 / 9) / 2) / 2
    )


def test_the_results_are_listed_best_first() -> None:
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    records = [trial(0, "complete", 0.4), trial(1, "pruned", 0.9), trial(2, "complete", 0.6)]
    console.print(results_table(records, CONFIG, top=5))
    lines = console.export_text().splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["2", "60.00%"], ["0", "40.00%"]]
