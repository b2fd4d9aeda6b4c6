from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from studies.findings import findings
from studies.storage import open_database
from studies.study import create_or_continue
from studies.timeline import Restarts, cost, restarts, runs_of, timeline, worker_times
from tests.studies.trials import CONFIG, NOW, SMALL, at, run, trial

WEEK = 7 * 24 * 3600.0


def test_every_run_is_there_once_in_the_order_of_their_start() -> None:
    shown = timeline(SMALL, NOW)
    assert [(entry.trial, entry.run.worker, entry.end) for entry in shown] == [
        (0, "host-1", "complete"),
        (1, "host-2", "pruned"),
        (2, "host-2", "lost"),
        (3, "host-1", "diverged"),
        (4, "host-1", "failed"),
        (2, "host-3", "complete"),
        (5, "host-1", "running"),
    ]
    assert [entry.run.ended for entry in shown if entry.trial == 5] == [NOW]


def test_what_was_handed_back_and_waits_has_its_run_alone() -> None:
    earlier = run("host-1", 0, 30, 0, 2)
    waits = trial(0, "waiting", 0.1, 0.2, begin=0, seconds=None, earlier_runs=(earlier,))
    assert runs_of(waits, NOW) == (earlier,)
    (entry,) = timeline([waits], NOW)
    assert entry.end == "handed back"
    elsewhere = replace(waits, state="running", started=at(50), epochs_before=2)
    assert [entry.end for entry in timeline([elsewhere], NOW)] == ["handed back", "running"]


def test_a_trial_that_failed_as_it_lost_too_many_workers_ends_with_their_last_sign() -> None:
    last = run("host-1", 0, 30, 0, 2, lost=True)
    failed = trial(0, "failed", 0.1, 0.2, begin=0, seconds=90, earlier_runs=(last,))
    assert runs_of(failed, NOW) == (last,)


def test_what_a_dead_machine_left_running_ended_with_its_last_heartbeat(tmp_path: Path) -> None:
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    opened, _ = create_or_continue(storage, CONFIG, "0" * 64, enqueued=[])
    lost, beats = (storage.create(opened.study._study_id, None) for _ in range(2))
    with storage.engine.begin() as connection:
        for change in (
            f"trials SET datetime_start = '{at(0)}'",
            f"trial_heartbeats SET heartbeat = '{at(90)}' WHERE trial_id = {lost}",
        ):
            connection.exec_driver_sql(f"UPDATE {change}")
    now = at(WEEK)
    found = findings(opened, None, now)
    assert [(entry.end, entry.run.ended) for entry in found.runs] == [
        ("lost", at(90)),
        ("running", now),
    ]
    assert found.cost.seconds == 90 + WEEK
    assert [item.lost for item in found.workers] == [1], "both are this process's"
    assert [item.silent_since for item in found.records] == [at(90), None]
    assert beats is not None
    storage.end(beats, TrialState.PRUNED)
    (_, ended) = findings(opened, None, now).records
    assert ended.silent_since is None


def test_a_run_that_was_never_heard_of_again_takes_no_time() -> None:
    """The clocks of the worker and of the database are not the same."""
    silent = trial(0, "running", begin=10, seconds=None, silent_since=at(8))
    assert runs_of(silent, NOW) == (run("host-1", 10, 10, 0, 0, lost=True),)


def test_a_worker_is_idle_between_its_runs() -> None:
    first, second, third = worker_times(timeline(SMALL, NOW))
    assert (first.worker, second.worker, third.worker) == ("host-1", "host-2", "host-3")
    # Trials 0, 3, 4 and 5: 0 to 40, 60 to 65, 70 to 75, 900 to 1000.
    assert (first.busy_seconds, first.idle_seconds) == (150, 850)
    # Trial 1, and 2 until it was lost: 10 to 30, 50 to 70.
    assert (second.busy_seconds, second.idle_seconds, second.lost) == (40, 20, 1)
    assert (third.runs, third.resumed, third.idle_seconds) == (1, 1, 0)


def test_who_was_lost_and_what_was_taken_up_again_is_counted() -> None:
    assert restarts(timeline(SMALL, NOW)) == Restarts(workers_lost=1, trials_taken_up_again=1)
    twice = (run("host-2", 0, 9, 0, 1, lost=True), run("host-1", 10, 19, 1, 1))
    other = trial(0, "complete", 0.1, begin=20, seconds=5, earlier_runs=twice)
    both = [other, trial(1, "waiting", begin=0, seconds=None, earlier_runs=twice[:1])]
    assert restarts(timeline(both, NOW)) == Restarts(workers_lost=1, trials_taken_up_again=1)
    assert restarts([]) == Restarts(0, 0)


def test_what_was_spent_and_saved() -> None:
    paid = cost(SMALL, CONFIG, NOW)
    # Trial 2 had two epochs when its worker was lost, and went on after the first of them.
    assert paid.epochs == 4 + 2 + (2 + 3) + 1 + 0 + 1
    assert paid.repeated_epochs == 1
    assert paid.pruned_epochs == 2, "of trial 1; the diverged one was not pruned"
    assert paid.seconds == 40 + 20 + (20 + 30) + 5 + 5 + 100
    assert paid.pruned_seconds == pytest.approx(2 * 20 / 2)
    assert paid.idle_seconds == 850 + 20


def test_a_trial_that_began_anew_paid_for_its_first_epochs_twice() -> None:
    """Eight epochs whose state was lost, then pruned after three."""
    config = CONFIG.model_copy(update={"trial": CONFIG.trial.model_copy(update={"epochs": 10})})
    lost = run("host-1", 0, 80, 0, 8, lost=True)
    paid = cost([trial(0, "pruned", 0.1, 0.2, 0.3, begin=90, earlier_runs=(lost,))], config, NOW)
    assert (paid.epochs, paid.repeated_epochs, paid.pruned_epochs) == (11, 3, 7)


def test_a_study_without_trials_costs_nothing() -> None:
    paid = cost([], CONFIG, NOW)
    assert (paid.epochs, paid.seconds, paid.idle_seconds, paid.pruned_epochs) == (0, 0, 0, 0)
