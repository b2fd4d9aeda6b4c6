import json
import math
import time
from datetime import datetime
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies.results import (
    EARLIER_RUNS,
    Run,
    as_json,
    fruitless,
    rank,
    readable_seconds,
    record,
    runs_until,
    summarise,
)


def trial(number: int, state: TrialState, *accuracies: float, **attributes: str) -> FrozenTrial:
    finished = state.is_finished()
    value = max(accuracies) if state == TrialState.COMPLETE else None
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=value,
        values=None,
        datetime_start=datetime(2026, 1, 1),
        datetime_complete=datetime(2026, 1, 1, 0, 1) if finished else None,
        params={},
        distributions={},
        user_attrs=dict(attributes),
        system_attrs={},
        intermediate_values=dict(enumerate(accuracies, start=1)),
    )


def test_the_best_is_the_complete_trial_with_the_highest_epoch() -> None:
    records = [
        record(item)
        for item in (
            trial(0, TrialState.COMPLETE, 0.5, 0.7, 0.6),
            trial(1, TrialState.PRUNED, 0.9),
            trial(2, TrialState.COMPLETE, 0.1, 0.7),
            trial(3, TrialState.RUNNING, 0.8),
            trial(4, TrialState.COMPLETE, 0.2),
        )
    ]
    assert [item.number for item in rank(records)] == [0, 2, 4]
    best = summarise(records).best
    assert best is not None
    assert (best.number, best.value, best.seconds) == (0, 0.7, 60.0)


def test_a_complete_trial_is_judged_by_what_its_worker_told() -> None:
    told = trial(0, TrialState.COMPLETE, 0.4, 0.9)
    told.value = 0.4
    assert record(told).value == 0.4


def test_every_state_is_counted_apart() -> None:
    summary = summarise(
        [
            record(trial(0, TrialState.COMPLETE, 0.5)),
            record(trial(1, TrialState.PRUNED, 0.1)),
            record(trial(2, TrialState.PRUNED, diverged="the loss was nan")),
            record(trial(3, TrialState.FAIL, error="boom")),
            record(trial(4, TrialState.RUNNING)),
            record(trial(5, TrialState.WAITING)),
        ]
    )
    counts = (summary.complete, summary.pruned, summary.diverged, summary.failed)
    assert counts == (1, 1, 1, 1)
    assert (summary.running, summary.waiting) == (1, 1)
    assert summary.finished == 3


def test_a_reason_is_kept() -> None:
    assert record(trial(0, TrialState.FAIL, error="boom")).reason == "boom"
    assert record(trial(0, TrialState.PRUNED, diverged="nan")).reason == "nan"


def test_json_has_times_in_utc_and_the_best_trial() -> None:
    records = [record(trial(0, TrialState.COMPLETE, 0.5))]
    document = as_json(summarise(records), records)
    assert document["best"]["value"] == 0.5
    assert document["top"][0]["started"] == "2026-01-01T00:00:00Z"


def test_a_study_without_trials_has_no_best() -> None:
    assert summarise([]).best is None
    assert as_json(summarise([]), [])["best"] is None


def test_a_trial_that_optuna_made_has_no_worker() -> None:
    plain = create_trial(value=0.5)
    assert record(plain).worker is None


def test_epochs_without_a_number_do_not_count() -> None:
    assert record(trial(0, TrialState.PRUNED, math.nan, 0.4, 0.3)).value == 0.4
    assert record(trial(0, TrialState.PRUNED, math.nan)).value is None


def test_times_are_in_utc_wherever_this_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = record(trial(0, TrialState.COMPLETE, 0.5))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found.started == datetime(2025, 12, 31, 15)
    assert found.seconds == 60


def test_a_run_is_kept_once_though_its_end_is_said_twice() -> None:
    running = trial(0, TrialState.RUNNING, 0.1, 0.2, worker="host-1")
    first = runs_until(running, datetime(2026, 1, 1, 0, 5), lost=False)
    running.user_attrs[EARLIER_RUNS] = json.loads(json.dumps(first))
    assert runs_until(running, datetime(2026, 1, 1, 0, 9), lost=True) == first
    (run,) = record(running).earlier_runs
    assert run == Run("host-1", datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 5), 0, 2, lost=False)
    document = as_json(summarise([]), [record(running)])
    assert document["top"][0]["earlier_runs"][0]["ended"] == "2026-01-01T00:05:00Z"
    json.dumps(document)


@pytest.mark.parametrize(
    ("epochs", "losses"),
    [
        ((0, 0, 0), (1, 2, 3)),
        ((0, 1, 2), (1, 1, 1)),
        ((1, 1, 2, 2, 2), (1, 2, 1, 2, 3)),
        ((3, 1, 2, 3, 4), (1, 2, 3, 4, 1)),  # After the first it has begun anew.
        ((3, 5, 3, 5, 3), (1, 1, 2, 3, 4)),  # Each time.
    ],
)
def test_losses_count_from_the_last_epoch_that_the_trial_had_never_had(
    epochs: tuple[int, ...], losses: tuple[int, ...]
) -> None:
    stored: list[int] | None = None
    for reached, expected in zip(epochs, losses, strict=True):
        stored = list(fruitless(stored, reached))
        assert stored[0] == expected


@pytest.mark.parametrize("strange", ["", "ab", 7, {}, [1], ["a", None], [-1, 5e300], [[], {}]])
def test_nonsense_in_place_of_the_losses_counts_for_nothing(strange: Any) -> None:
    assert fruitless(strange, 1) == (1, 1)


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (99, "99 s"), (150, "2 min"), (7500, "2 h 05 min")]
)
def test_durations_are_readable(seconds: float, said: str) -> None:
    assert readable_seconds(seconds) == said
