from dataclasses import replace

import pytest

from studies.timeline import cost, runs_of, timeline, worker_times
from tests.studies.trials import CONFIG, NOW, SMALL, at, run, trial


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


def test_a_worker_is_idle_between_its_runs() -> None:
    first, second, third = worker_times(timeline(SMALL, NOW))
    assert (first.worker, second.worker, third.worker) == ("host-1", "host-2", "host-3")
    # Trials 0, 3, 4 and 5: 0 to 40, 60 to 65, 70 to 75, 900 to 1000.
    assert (first.busy_seconds, first.idle_seconds) == (150, 850)
    # Trial 1, and 2 until it was lost: 10 to 30, 50 to 70.
    assert (second.busy_seconds, second.idle_seconds, second.lost) == (40, 20, 1)
    assert (third.runs, third.resumed, third.idle_seconds) == (1, 1, 0)


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
