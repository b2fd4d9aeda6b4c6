import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState

from search.pruners import Reached, reached_by
from studies.ownership import OwnedStorage
from studies.proxy import start
from studies.results import ERROR, rank, record
from studies.storage import open_database, open_storage, quiet_optuna

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


@pytest.fixture(params=["sqlite", "postgresql", "proxy"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnedStorage]:
    if request.param == "postgresql":
        yield open_database(request.getfixturevalue("postgres_url"))
        return
    database = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    if request.param == "sqlite":
        yield database
        return
    server, port = start(database, "127.0.0.1", 0, secret=None)
    yield open_storage(f"grpc://127.0.0.1:{port}")
    server.stop(None).wait()


@pytest.fixture
def study(storage: OwnedStorage) -> Study:
    """Its trials lie among those of another."""
    other = optuna.create_study(storage=storage, study_name="other", direction="maximize")
    other.add_trial(optuna.create_trial(value=9.0, intermediate_values={1: 9.0}))
    return optuna.create_study(storage=storage, study_name="s", direction="maximize")


def add(study: Study, state: TrialState, *reports: float, error: str | None = None) -> None:
    study.add_trial(
        optuna.create_trial(
            state=state,
            value=max(reports) if state == COMPLETE else None,
            intermediate_values=dict(enumerate(reports, start=1)),
            user_attrs={} if error is None else {ERROR: error},
        )
    )


def test_trials_are_open_from_the_first_on_that_has_not_ended(
    storage: OwnedStorage, study: Study
) -> None:
    assert storage.open_trials(study._study_id) == (0, [])
    for state in (COMPLETE, FAIL, PRUNED):
        add(study, state, 0.5)
    assert storage.open_trials(study._study_id) == (2, [])
    for state in (WAITING, COMPLETE, FAIL, RUNNING):
        add(study, state, 0.5)
    ended, found = storage.open_trials(study._study_id)
    assert ended == 2
    assert [(trial.number, trial.state) for trial in found] == [
        (3, WAITING),
        (4, COMPLETE),
        (5, FAIL),
        (6, RUNNING),
    ]
    assert storage.count(study._study_id) == 7


def test_the_last_to_end_come_first_with_their_errors(storage: OwnedStorage, study: Study) -> None:
    with quiet_optuna():
        first, second, third, _ = (study.ask() for _ in range(4))
        study.tell(first, 0.5)
        second.set_user_attr(ERROR, "boom")
        for trial in (third, second):
            study.tell(trial, state=FAIL)
    found = storage.last_ended(study._study_id, since=1, most=10)
    assert sorted(found) == [(1, FAIL, "boom"), (2, FAIL, None)], "the fourth has not ended"
    assert found[0].number == 1
    assert len(storage.last_ended(study._study_id, since=0, most=2)) == 2


def test_the_best_of_the_outlines_are_the_best_of_the_study(
    storage: OwnedStorage, study: Study
) -> None:
    for value in (0.3, 0.9, 0.5, 0.9, 0.7):
        add(study, COMPLETE, value)
    add(study, PRUNED, 0.95)
    add(study, RUNNING, 0.99)
    whole = [record(trial) for trial in study.get_trials()]
    some = storage.outlines(study._study_id, numbers={0, 5, 6}, best=3)
    assert [item.number for item in rank(some)[:3]] == [item.number for item in rank(whole)[:3]]
    states = {item.number: item.state for item in some}
    assert states == {
        0: "complete",
        1: "complete",
        3: "complete",
        4: "complete",
        5: "pruned",
        6: "running",
    }


def test_what_others_have_reached_is_what_optuna_s_copy_of_the_study_says(
    storage: OwnedStorage, study: Study
) -> None:
    """At every moment of a search with pruned, failed, silent and handed back trials."""
    random = np.random.default_rng(0)
    reached = Reached(storage, study._study_id)
    running: list[tuple[optuna.Trial, count[int]]] = []
    compared = 0
    with quiet_optuna():
        for _ in range(60):
            move = random.integers(8)
            if move == 0 or not running:
                running.append((study.ask(), count(1)))
                continue
            index = int(random.integers(len(running)))
            trial, epochs = running[index]
            if move == 1:
                study.tell(trial, state=[PRUNED, FAIL][random.integers(2)])
                running.pop(index)
            elif move == 2:
                study.tell(trial, float(random.random()))
                running.pop(index)
            else:
                value = [math.nan, math.inf, -math.inf, *random.random(9)][random.integers(12)]
                trial.report(float(value), next(epochs))
            if not running:
                continue
            own = running[-1][0]  # Who asks is running.
            for epoch in (1, 3):
                found = reached.by(epoch, but=own._trial_id)
                expected = reached_by(epoch, study, but=own.number)
                assert sorted(found) == sorted(expected)
                compared += len(found)
    assert compared > 100
