import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages._rdb import models
from optuna.trial import TrialState, create_trial
from optuna_dashboard import save_note
from optuna_dashboard._note import get_note_from_system_attrs

from studies.database import DatabaseStorage
from studies.ownership import NotOwned, OwnedStorage, Unreadable, own_name
from studies.patience import ProxyFailure
from studies.proxy import start
from studies.results import EPOCHS_BEFORE, ERROR, FRUITLESS, LOSSES, OWNER, WORKER, record
from studies.standing import TURN
from studies.storage import STALE_SECONDS, open_database, open_storage


@pytest.fixture(params=["sqlite", "postgresql", "proxy", "proxy beside the database"])
def kind(request: pytest.FixtureRequest) -> str:
    """Where the trials are, and how our process and theirs get there."""
    return str(request.param)


@pytest.fixture
def database(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> DatabaseStorage:
    if kind in ("postgresql", "proxy"):
        return open_database(request.getfixturevalue("postgres_url"))
    return open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)


@pytest.fixture
def proxied(database: DatabaseStorage) -> Iterator[str]:
    server, port = start(database, "127.0.0.1", 0, secret=None)
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def ours(kind: str, database: DatabaseStorage, request: pytest.FixtureRequest) -> OwnedStorage:
    if "proxy" in kind:
        return open_storage(request.getfixturevalue("proxied"))
    return database


@pytest.fixture
def theirs(kind: str, database: DatabaseStorage, request: pytest.FixtureRequest) -> OwnedStorage:
    """Another process's view of the same database."""
    if kind == "proxy":
        return open_storage(request.getfixturevalue("proxied"))
    return open_database(database.url)


@pytest.fixture
def study(ours: OwnedStorage) -> optuna.Study:
    return optuna.create_study(storage=ours, study_name="s", direction="maximize")


def waiting(storage: OwnedStorage, study: optuna.Study) -> int:
    return storage.create_new_trial(study._study_id, create_trial(state=TrialState.WAITING))


def without_a_heartbeat(storage: DatabaseStorage, trial_id: int) -> None:
    """As if the last one were long ago."""
    with storage.engine.begin() as connection:
        then = connection.execute(sqlalchemy.func.now()).scalar()
        assert then is not None
        connection.execute(
            sqlalchemy.update(models.TrialHeartbeatModel)
            .where(models.TrialHeartbeatModel.trial_id == trial_id)
            .values(heartbeat=then - timedelta(seconds=STALE_SECONDS + 1))
        )


def wait_for_locks(storage: DatabaseStorage, waiting: int) -> None:
    """Until so many connections wait for a lock of another, in PostgreSQL."""
    blocked = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    deadline = time.monotonic() + 60
    with storage.engine.connect() as other:
        while other.exec_driver_sql(blocked).scalar() != waiting:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            other.rollback()


def started_long_ago(storage: DatabaseStorage, trial_id: int, seconds: float) -> None:
    then = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=seconds)
    with storage.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("UPDATE trials SET datetime_start = :then WHERE trial_id = :trial"),
            {"then": then, "trial": trial_id},
        )


def test_a_waiting_trial_is_taken_once(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    assert theirs.take(trial)
    assert not ours.take(trial)
    assert not theirs.take(trial)
    assert ours.get_trial(trial).state == TrialState.RUNNING


def test_what_is_handed_back_can_be_taken_with_its_values(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    assert ours.take(trial)
    ours.set_trial_intermediate_value(trial, 1, 0.5)
    ours.hand_back(trial)
    assert ours.owner(trial) is None
    ours.hand_back(trial)  # As after a connection that was lost before the answer.
    assert theirs.take(trial)
    with pytest.raises(NotOwned):
        ours.hand_back(trial)
    found = theirs.get_trial(trial)
    assert found.intermediate_values == {1: 0.5}
    assert LOSSES not in found.user_attrs, "nobody was lost"


def test_the_runs_of_a_trial_that_changes_hands_are_kept(
    database: DatabaseStorage, ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    assert ours.take(trial)
    ours.set_trial_user_attr(trial, WORKER, "first")
    ours.set_trial_intermediate_value(trial, 1, 0.5)
    ours.hand_back(trial)
    assert theirs.take(trial)
    theirs.set_trial_user_attr(trial, WORKER, "second")
    theirs.set_trial_user_attr(trial, EPOCHS_BEFORE, 1)
    theirs.set_trial_intermediate_value(trial, 2, 0.6)
    theirs.set_trial_intermediate_value(trial, 3, 0.7)
    assert ours.take_away(trial, theirs.owner(trial), 3, "silence")
    assert ours.take(trial)

    found = record(database.get_trial(trial))
    first, second = found.earlier_runs
    assert (first.worker, first.epochs_before, first.epochs, first.lost) == ("first", 0, 1, False)
    assert (second.worker, second.epochs_before, second.epochs, second.lost) == (
        "second",
        1,
        3,
        True,
    )
    assert found.started is not None
    assert first.started <= first.ended <= second.started <= second.ended
    # A heartbeat has no fractions of a second on SQLite.
    assert second.ended <= found.started + timedelta(seconds=1)
    assert found.epochs_before == 3, "until the next worker says what it has found of them"
    ours.hand_back(trial)
    last = record(database.get_trial(trial)).earlier_runs[-1]
    assert (last.epochs_before, last.epochs) == (3, 3), "it has trained none"


def test_a_run_that_ends_before_its_first_report_bears_its_own_worker_s_name(
    ours: OwnedStorage,
    theirs: OwnedStorage,
    study: optuna.Study,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = waiting(ours, study)
    for worker, end in (("first", ours.hand_back), ("second", None)):
        monkeypatch.setattr("studies.ownership.own_name", lambda name=worker: name)
        assert ours.take(trial)
        assert record(theirs.get_trial(trial)).worker == worker
        if end:
            end(trial)
    assert theirs.take_back(study._study_id, "second", 3, "killed")
    earlier = record(theirs.get_trial(trial)).earlier_runs
    assert [run.worker for run in earlier] == ["first", "second"]
    monkeypatch.undo()
    made = ours.create(study._study_id, None)
    assert made is not None
    assert record(theirs.get_trial(made)).worker == own_name()


def test_the_run_of_a_lost_worker_ends_with_its_last_sign_of_life(
    database: DatabaseStorage, ours: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    assert ours.take(trial)
    started_long_ago(database, trial, seconds=300)
    without_a_heartbeat(database, trial)
    assert ours.take_away(trial, ours.owner(trial), 3, "silence")
    (run,) = record(database.get_trial(trial)).earlier_runs
    silent = datetime.now(UTC).replace(tzinfo=None) - run.ended
    assert STALE_SECONDS <= silent.total_seconds() < STALE_SECONDS + 30
    assert (run.ended - run.started).total_seconds() == pytest.approx(300 - STALE_SECONDS, abs=30)


def test_who_was_wrongly_taken_for_dead_changes_nothing_any_more(
    database: DatabaseStorage, ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    assert ours.take(trial)
    ours.set_trial_intermediate_value(trial, 1, 0.5)
    without_a_heartbeat(database, trial)
    ((lost, owner),) = theirs.lost_trials(study._study_id).items()
    assert lost == trial
    ((silent, since),) = theirs.silent_trials(study._study_id).items()
    assert silent == trial
    silence = datetime.now(UTC).replace(tzinfo=None) - since
    assert silence.total_seconds() == pytest.approx(STALE_SECONDS, abs=30)
    assert theirs.take_away(trial, owner, most_losses=3, reason="silence")

    def refused() -> None:
        for write in (
            lambda: ours.set_trial_intermediate_value(trial, 2, 0.9),
            lambda: ours.set_trial_user_attr(trial, "best_epoch", 2),
            lambda: ours.set_trial_state_values(trial, TrialState.COMPLETE, [0.9]),
        ):
            with pytest.raises(NotOwned):
                write()

    refused()  # While it waits for somebody,
    assert theirs.take(trial)
    refused()  # and when it has found somebody.
    found = theirs.get_trial(trial)
    assert found.state == TrialState.RUNNING
    assert found.intermediate_values == {1: 0.5}
    assert "best_epoch" not in found.user_attrs
    assert found.user_attrs[LOSSES] == 1
    theirs.set_trial_state_values(trial, TrialState.COMPLETE, [0.7])
    assert ours.get_trial(trial).value == 0.7


def test_a_silent_trial_whose_heart_beats_again_is_not_taken_from_it(
    database: DatabaseStorage, ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    """It was found to be silent a moment before."""
    trial = waiting(ours, study)
    assert ours.take(trial)
    without_a_heartbeat(database, trial)
    ((lost, owner),) = theirs.lost_trials(study._study_id).items()
    ours.record_heartbeat(trial)
    assert not theirs.take_away(lost, owner, 3, "silence", if_silent=True)
    assert theirs.get_trial(trial).state == TrialState.RUNNING
    without_a_heartbeat(database, trial)
    assert theirs.take_away(lost, owner, 3, "silence", if_silent=True)


def test_who_takes_a_silent_trial_away_waits_for_a_beat_that_has_begun(postgres_url: str) -> None:
    ours, theirs = open_database(postgres_url), open_database(postgres_url)
    study = optuna.create_study(storage=ours, study_name="s", direction="maximize")
    trial = ours.create(study._study_id, None)
    assert trial is not None
    without_a_heartbeat(ours, trial)
    with ThreadPoolExecutor(1) as thread, ours.engine.connect() as connection:
        row = models.TrialModel.trial_id == trial
        connection.execute(sqlalchemy.select(models.TrialModel.state).where(row).with_for_update())
        taking = thread.submit(
            theirs.take_away, trial, ours.owner(trial), 3, "silence", if_silent=True
        )
        wait_for_locks(ours, 1)
        connection.exec_driver_sql(
            "UPDATE trial_heartbeats SET heartbeat = now() at time zone 'utc'"
        )
        connection.commit()
        assert taking.result() is False


def test_what_was_forgotten_is_kept_alive_no_longer(
    database: DatabaseStorage, ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    """A heart may still beat for a moment when its trial has found another worker."""
    trial = waiting(ours, study)
    assert ours.take(trial)
    ours.hand_back(trial)
    ours.forget(trial)
    assert not ours.holds(trial)
    assert theirs.take(trial)
    without_a_heartbeat(database, trial)
    ours.record_heartbeat(trial)
    assert list(theirs.lost_trials(study._study_id)) == [trial]
    assert (ours._tokens, ours._beats) == ({}, {})


def test_it_keeps_no_trial_of_another_alive(
    database: DatabaseStorage, ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    assert ours.take(trial)
    without_a_heartbeat(database, trial)
    theirs.take_away(trial, ours.owner(trial), 3, "silence")
    assert theirs.take(trial)
    without_a_heartbeat(database, trial)
    ours.record_heartbeat(trial)
    assert list(theirs.lost_trials(study._study_id)) == [trial]
    theirs.record_heartbeat(trial)
    assert theirs.lost_trials(study._study_id) == {}


def test_a_trial_that_has_found_another_worker_by_now_is_not_taken_from_it(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    """Two find it lost; the second is late."""
    trial = waiting(ours, study)
    assert ours.take(trial)
    lost = ours.owner(trial)
    assert theirs.take_away(trial, lost, 3, "silence")
    assert theirs.take(trial)
    assert not ours.take_away(trial, lost, 3, "silence")
    assert theirs.get_trial(trial).user_attrs[LOSSES] == 1


def test_who_has_lost_a_trial_may_find_its_next_worker_lost_too(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    assert ours.take(trial)
    assert theirs.take_away(trial, ours.owner(trial), 3, "silence")
    assert theirs.take(trial)
    assert ours.take_away(trial, ours.owner(trial), 3, "silence")
    assert theirs.get_trial(trial).state == TrialState.WAITING
    assert theirs.get_trial(trial).user_attrs[LOSSES] == 2


def test_a_write_that_had_to_wait_for_who_took_the_trial_away_is_refused(
    postgres_url: str,
) -> None:
    """SQLite has one lock for all, and reads nothing before it has it."""
    ours, theirs = open_database(postgres_url), open_database(postgres_url)
    study = optuna.create_study(storage=ours, study_name="s", direction="maximize")
    trial = ours.create(study._study_id, None)
    assert trial is not None
    writes: list[Callable[[], object]] = [
        lambda: ours.report(trial, {1: 0.5}, {}, {}),
        lambda: ours.end(trial, TrialState.COMPLETE, 0.5),
        lambda: ours.beat(trial, ours._tokens[trial]),
    ]
    with ThreadPoolExecutor(len(writes)) as threads, theirs.engine.connect() as connection:
        row = models.TrialModel.trial_id == trial
        connection.execute(sqlalchemy.select(models.TrialModel.state).where(row).with_for_update())
        waiting_writes = [threads.submit(write) for write in writes]
        wait_for_locks(ours, len(writes))
        attributes = models.TrialUserAttributeModel
        of_owner = (attributes.trial_id == trial, attributes.key == OWNER)
        connection.execute(sqlalchemy.update(attributes).where(*of_owner).values(value_json="null"))
        connection.execute(
            sqlalchemy.update(models.TrialModel).where(row).values(state=TrialState.WAITING)
        )
        connection.commit()
        reported, ended, beaten = waiting_writes
        assert isinstance(reported.exception(), NotOwned)
        assert isinstance(ended.exception(), NotOwned)
        assert beaten.result() is False
    found = theirs.get_trial(trial)
    assert (found.state, found.intermediate_values) == (TrialState.WAITING, {})


def test_machines_in_different_time_zones_see_the_same_heartbeats(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ours, theirs in (("Asia/Tokyo", "UTC"), ("UTC", "Asia/Tokyo")):
        monkeypatch.setenv("PGTZ", ours)
        storage = open_database(postgres_url)
        study = optuna.create_study(storage=storage, study_name=ours, direction="maximize")
        trial = storage.create(study._study_id, None)
        monkeypatch.setenv("PGTZ", theirs)
        elsewhere = open_database(postgres_url)
        assert elsewhere.lost_trials(study._study_id) == {}
        with storage.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '61 s'"
            )
        assert list(elsewhere.lost_trials(study._study_id)) == [trial]


@pytest.mark.parametrize("hostile", ["many", [1]])
def test_stored_attributes_of_another_kind_stop_nobody(
    ours: OwnedStorage,
    theirs: OwnedStorage,
    database: DatabaseStorage,
    study: optuna.Study,
    hostile: object,
) -> None:
    trial = waiting(ours, study)
    assert ours.take(trial)
    for key in (LOSSES, OWNER):
        theirs.set_trial_user_attr(trial, key, hostile)
    without_a_heartbeat(database, trial)
    theirs.take_back(study._study_id, "a-1", 3, "silence")
    ((lost, owner),) = set(theirs.lost_trials(study._study_id).items())
    assert theirs.take_away(lost, owner, 3, "silence")
    assert theirs.take(trial)
    assert theirs.get_trial(trial).user_attrs[LOSSES] == 1


HARMS = [
    "UPDATE trial_params SET distribution_json = 'Evil'",
    "UPDATE trial_user_attributes SET value_json = '{'",
    "UPDATE trial_intermediate_values SET intermediate_value = NULL",
    "UPDATE trial_intermediate_values SET intermediate_value_type = 'INF_POS'",
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_silent_trial_that_cannot_be_read_fails_and_the_others_are_taken_back(
    ours: OwnedStorage,
    theirs: OwnedStorage,
    database: DatabaseStorage,
    study: optuna.Study,
    harm: str,
) -> None:
    broken, sound = waiting(ours, study), waiting(ours, study)
    for trial in (broken, sound):
        assert ours.take(trial)
        ours.report(trial, {1: 0.5}, {}, {"rate": (0.1, FloatDistribution(1e-4, 1.0))})
        without_a_heartbeat(database, trial)
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"{harm} WHERE trial_id = {broken}")
    assert not theirs.take_back(study._study_id, "another", 3, "killed"), "and is stopped by none"
    states = [trial.state for trial in study.get_trials()]
    assert states == [TrialState.RUNNING] * 2, "nor is who reads the whole study"
    taken = {
        trial: theirs.take_away(trial, owner, 3, "silence", if_silent=True)
        for trial, owner in theirs.lost_trials(study._study_id).items()
    }
    assert taken == {broken: True, sound: True}
    _, trials = theirs.open_trials(study._study_id)
    assert [trial.state for trial in trials] == [TrialState.WAITING]
    (failed,) = theirs.last_ended(study._study_id, 0, 5)
    assert failed.state == TrialState.FAIL
    assert str(failed.error).startswith("what is stored of it cannot be read: ")
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.parametrize("harm", HARMS)
def test_a_trial_of_ours_that_cannot_be_read_is_said_to_be_so_and_given_up(
    ours: OwnedStorage,
    theirs: OwnedStorage,
    database: DatabaseStorage,
    study: optuna.Study,
    harm: str,
) -> None:
    trial = waiting(ours, study)
    assert ours.take(trial)
    ours.report(trial, {1: 0.5}, {"seed": 1}, {"rate": (0.1, FloatDistribution(1e-4, 1.0))})
    but = f" AND key <> '{OWNER}'" if "attributes" in harm else ""
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"{harm} WHERE trial_id = {trial}{but}")
    for read in (ours.get_trial, ours.hand_back):
        with pytest.raises(Unreadable, match="what is stored of it cannot be read: "):
            read(trial)
    theirs.give_up(trial, 0, "lost")
    assert ours.is_ours(trial), "it is not theirs to be given up"
    ours.give_up(trial, 0, "lost")
    found = theirs.get_trial(trial)
    assert (found.state, found.params) == (TrialState.FAIL, {})
    assert found.user_attrs[ERROR].startswith("what is stored of it cannot be read: ")


def test_a_trial_that_has_ended_and_cannot_be_read_hides_none_of_the_others(
    ours: OwnedStorage,
    theirs: OwnedStorage,
    database: DatabaseStorage,
    study: optuna.Study,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        trial = waiting(ours, study)
        assert ours.take(trial)
        ours.report(trial, {1: 0.5}, {}, {"rate": (0.1, FloatDistribution(1e-4, 1.0))})
        ours.end(trial, TrialState.COMPLETE, 0.5)
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"{HARMS[0]} WHERE trial_id < {trial}")
    trials = theirs.get_all_trials(study._study_id)
    assert [trial.state for trial in trials] == [*[TrialState.FAIL] * 2, TrialState.COMPLETE]
    assert trials[0].user_attrs[ERROR].startswith("what is stored of it cannot be read: ")
    assert theirs.get_all_trials(study._study_id)[2].state == TrialState.COMPLETE
    (said,) = caplog.messages
    assert said.startswith("trial 0 (and 1 more) counts as failed: what is stored of it cannot")
    assert ours.open_trials(study._study_id) == (3, []), "nothing of it was changed"


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE trials SET datetime_start = 'never'",
        "UPDATE trial_intermediate_values SET intermediate_value_type = 'EVIL'",
        "UPDATE trial_intermediate_values SET intermediate_value = 'high'",
        "UPDATE trial_params SET param_value = 'high'",
    ],
)
def test_so_it_is_with_what_sqlite_alone_takes(tmp_path: Path, harm: str) -> None:
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    study = optuna.create_study(storage=storage, direction="maximize")
    broken, sound = waiting(storage, study), waiting(storage, study)
    for trial in (broken, sound):
        assert storage.take(trial)
        storage.report(trial, {1: 0.5}, {}, {"rate": (0.1, FloatDistribution(1e-4, 1.0))})
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(f"{harm} WHERE trial_id = {broken}")
    read = [trial.params for trial in study.get_trials(states=(TrialState.RUNNING,))]
    assert read == [{}, {"rate": 0.1}]
    with pytest.raises(Unreadable):
        study._storage.get_trial(broken)
    storage.give_up(broken, 0, "lost")
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.RUNNING]


def test_a_trial_that_loses_too_many_workers_has_failed(
    ours: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    for losses in (1, 2, 3):
        assert ours.take(trial), losses
        assert ours.take_away(trial, ours.owner(trial), 2, f"killed {losses}")
    found = ours.get_trial(trial)
    assert found.state == TrialState.FAIL
    assert found.datetime_complete is not None
    said = "its worker was lost 3 times without a new epoch in between; last: killed 3"
    assert found.user_attrs[ERROR] == said
    assert not ours.take(trial)


def lose(ours: OwnedStorage, trial: int, epochs: int, before: int | None = None) -> TrialState:
    """Let a worker take the trial, be lost after this epoch, and say what becomes of the trial.

    Args:
        before: the epoch that it goes on after; by default the last one reported.
    """
    assert ours.take(trial)
    before = len(ours.get_trial(trial).intermediate_values) if before is None else before
    reports = {epoch: 0.1 * epoch for epoch in range(before + 1, epochs + 1)}
    ours.report(trial, reports, {EPOCHS_BEFORE: before}, {})
    assert len(ours.get_trial(trial).intermediate_values) == epochs
    assert ours.take_away(trial, ours.owner(trial), 2, "preempted")
    return ours.get_trial(trial).state


def test_a_trial_that_makes_progress_may_lose_any_number_of_workers(
    ours: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    # Twice in the same epoch, each time: one loss less than it may have.
    for epoch in range(1, 6):
        assert [lose(ours, trial, epoch), lose(ours, trial, epoch)] == [TrialState.WAITING] * 2
    assert ours.get_trial(trial).user_attrs[LOSSES] == 10
    assert lose(ours, trial, 5) == TrialState.FAIL
    found = ours.get_trial(trial)
    said = "its worker was lost 3 times without a new epoch in between; last: preempted"
    assert found.user_attrs[ERROR] == said
    assert (found.user_attrs[LOSSES], found.user_attrs[FRUITLESS]) == (11, [3, 5])


def test_a_trial_that_begins_anew_each_time_and_dies_in_the_same_epoch_has_failed(
    ours: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    states = [lose(ours, trial, 2, before=0) for _ in range(3)]
    assert states == [TrialState.WAITING, TrialState.WAITING, TrialState.FAIL]


def test_who_gives_a_trial_up_counts_as_lost_to_it_once(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = waiting(ours, study)
    assert not ours.give_up(trial, 3, "broken"), "not ours"
    assert ours.take(trial)
    assert not theirs.give_up(trial, 3, "broken"), "not theirs"
    assert ours.give_up(trial, 3, "broken")
    assert not ours.give_up(trial, 3, "broken")  # As after a connection that was lost.
    found = theirs.get_trial(trial)
    assert (found.state, found.user_attrs[LOSSES]) == (TrialState.WAITING, 1)
    assert theirs.take(trial)
    assert not ours.give_up(trial, 3, "broken"), "another's by now"


def test_a_dead_worker_s_trials_are_taken_back_and_no_other_s(
    ours: OwnedStorage, study: optuna.Study
) -> None:
    mine, other = waiting(ours, study), waiting(ours, study)
    assert ours.take(mine)
    assert ours.take(other)
    name = str(ours.owner(mine)).rpartition("-")[0]
    # A worker of another machine, whose name begins as that of ours does.
    ours.set_trial_user_attr(other, OWNER, f"{name}-1-abcd")
    ours.take_back(study._study_id, name, 3, "killed")
    states = {trial: ours.get_trial(trial).state for trial in (mine, other)}
    assert states == {mine: TrialState.WAITING, other: TrialState.RUNNING}


def test_a_new_trial_has_a_heartbeat_from_the_start(
    database: DatabaseStorage, ours: OwnedStorage, study: optuna.Study
) -> None:
    """One that is lost before its first beat would be running for ever."""
    trial = waiting(ours, study)
    assert ours.take(trial)
    assert ours.lost_trials(study._study_id) == {}
    time.sleep(0.01)
    without_a_heartbeat(database, trial)
    assert list(ours.lost_trials(study._study_id)) == [trial]


def test_a_new_trial_is_its_maker_s_own(
    database: DatabaseStorage, ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = ours.create(study._study_id, limit=None)
    assert trial is not None
    found = theirs.get_trial(trial)
    assert (found.number, found.state) == (0, TrialState.RUNNING)
    assert found.datetime_start is not None
    assert not theirs.take(trial)
    assert ours.lost_trials(study._study_id) == {}
    without_a_heartbeat(database, trial)
    assert theirs.lost_trials(study._study_id) == {trial: ours.owner(trial)}


def test_no_trial_is_made_beyond_the_limit_but_for_those_that_failed(
    ours: OwnedStorage, study: optuna.Study
) -> None:
    first, second = (ours.create(study._study_id, limit=2) for _ in range(2))
    assert first is not None
    assert second is not None
    assert ours.create(study._study_id, limit=2) is None
    ours.end(first, TrialState.FAIL)
    third = ours.create(study._study_id, limit=2)
    assert third is not None
    assert ours.get_trial(third).number == 2


def test_a_trial_whose_maker_had_no_answer_is_found_again(
    database: DatabaseStorage,
    ours: OwnedStorage,
    study: optuna.Study,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = ours.make

    def made_but_not_said(*arguments: Any) -> None:
        make(*arguments)
        raise ProxyFailure("the connection is lost", is_transient=True)

    monkeypatch.setattr(ours, "make", made_but_not_said)
    for _ in range(2):
        with pytest.raises(ProxyFailure):
            ours.create(study._study_id, limit=1)
    monkeypatch.undo()
    assert ours.may_have_created()
    for made in ours.get_all_trials(study._study_id):
        without_a_heartbeat(database, made._trial_id)
    trial = ours.create(study._study_id, limit=1)
    assert trial is not None
    assert not ours.may_have_created()
    assert ours.lost_trials(study._study_id) == {}, "its heart beats again"
    ours.report(trial, {1: 0.5}, {}, {})
    assert ours.create(study._study_id, limit=1) is None
    assert len(study.trials) == 1


def test_all_that_is_new_is_reported_at_once_and_can_be_said_twice(
    ours: OwnedStorage, study: optuna.Study
) -> None:
    trial = ours.create(study._study_id, None)
    assert trial is not None
    rate, kind = FloatDistribution(1e-4, 1.0, log=True), CategoricalDistribution(["a", "b"])
    parameters = {"rate": (0.1, rate), "kind": (1.0, kind)}
    for accuracy in (0.4, 0.5):
        ours.report(trial, {1: accuracy, 2: math.nan}, {"worker": "w"}, parameters)
    ours.report(trial, {3: math.inf}, {"best_epoch": 3}, {})
    found = ours.get_trial(trial)
    assert found.params == {"rate": 0.1, "kind": "b"}
    assert found.distributions == {"rate": rate, "kind": kind}
    assert found.intermediate_values.pop(3) == math.inf
    assert math.isnan(found.intermediate_values.pop(2))
    assert found.intermediate_values == {1: 0.5}
    assert found.user_attrs.items() >= {"worker": "w", "best_epoch": 3}.items()


def test_who_begins_before_what_was_reported_removes_the_later_epochs_once(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = ours.create(study._study_id, None)
    assert trial is not None
    ours.report(trial, {1: 0.1, 2: 0.2, 3: math.nan}, {}, {})
    ours.hand_back(trial)
    assert theirs.take(trial)
    theirs.report(trial, {}, {EPOCHS_BEFORE: 3}, {})
    assert theirs.get_trial(trial).intermediate_values.keys() == {1, 2, 3}
    theirs.report(trial, {2: 0.25}, {EPOCHS_BEFORE: 1}, {})
    assert theirs.get_trial(trial).intermediate_values == {1: 0.1, 2: 0.25}
    theirs.report(trial, {3: 0.35}, {}, {})
    theirs.report(trial, {2: 0.25}, {EPOCHS_BEFORE: 1}, {})  # It comes late, or once more.
    assert theirs.get_trial(trial).intermediate_values == {1: 0.1, 2: 0.25, 3: 0.35}


def test_of_a_trial_that_is_another_s_nothing_is_reported_and_it_does_not_end(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    trial = ours.create(study._study_id, None)
    assert trial is not None
    assert theirs.take_away(trial, ours.owner(trial), 3, "silence")
    assert theirs.take(trial)
    with pytest.raises(NotOwned):
        ours.report(trial, {1: 0.5}, {"best_epoch": 1}, {})
    with pytest.raises(NotOwned):
        ours.end(trial, TrialState.COMPLETE, 0.5)
    found = theirs.get_trial(trial)
    assert found.intermediate_values == {}
    assert found.state == TrialState.RUNNING


def test_a_trial_ends_once(ours: OwnedStorage, study: optuna.Study) -> None:
    trial = ours.create(study._study_id, None)
    assert trial is not None
    with pytest.raises(ValueError, match="cannot end with nan"):
        ours.end(trial, TrialState.COMPLETE, math.nan)
    ours.end(trial, TrialState.COMPLETE, 0.5)
    ended = ours.get_trial(trial)
    assert (ended.state, ended.value) == (TrialState.COMPLETE, 0.5)
    assert ended.duration is not None
    assert ended.duration < timedelta(seconds=60), "one time zone for both ends"
    # As after a connection that was lost before the answer.
    ours.end(trial, TrialState.COMPLETE, 0.5)
    assert ours.get_trial(trial).datetime_complete == ended.datetime_complete
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        ours.end(trial, TrialState.FAIL)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        ours.report(trial, {1: 0.5}, {}, {})


def test_no_write_reaches_a_trial_that_has_ended(ours: OwnedStorage, study: optuna.Study) -> None:
    """Neither ours nor Optuna's, with its owner's token or in nobody's name."""
    trial = ours.create(study._study_id, None)
    assert trial is not None
    owner = ours._tokens[trial]
    ours.end(trial, TrialState.COMPLETE, 0.5)
    ended = ours.get_trial(trial)
    rate = FloatDistribution(1e-4, 1.0)
    writes: list[Callable[[], object]] = [
        lambda: ours.report(trial, {1: 0.9}, {}, {}),
        lambda: ours.end(trial, TrialState.FAIL),
        lambda: ours.hand_back(trial),
        lambda: ours.set_trial_state_values(trial, TrialState.WAITING),
        lambda: ours.set_trial_intermediate_value(trial, 1, 0.9),
        lambda: ours.set_trial_user_attr(trial, "best_epoch", 1),
        lambda: ours.set_trial_system_attr(trial, "a", 1),
        lambda: ours.set_trial_param(trial, "rate", 0.1, rate),
    ]
    for _ in range(2):
        for write in writes:
            with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
                write()
        assert not ours.take_away(trial, owner, 3, "silence")
        assert not ours.give(trial, "another")
        assert not ours.beat(trial, owner)
        ours.forget(trial)
    assert ours.get_trial(trial) == ended


def test_a_trial_s_note_comes_with_its_end_and_one_of_the_user_s_stays(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    def note(trial: int) -> str:
        stored = ours.get_study_system_attrs(study._study_id)
        return str(get_note_from_system_attrs(stored, trial)["body"])

    first, second, third = (ours.create(study._study_id, None) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    save_note(optuna.trial.Trial(study, second), "look at this")
    for trial in (first, second, first):  # The last as after a connection that was lost.
        ours.end(trial, TrialState.COMPLETE, 0.5, "**Complete**")
    assert theirs.take_away(third, ours.owner(third), 0, "`killed`")
    assert note(first) == "**Complete**"
    assert note(second) == "look at this"
    assert note(third) == "**Failed**: `its worker was lost once; last: 'killed'`."


def test_of_all_processes_one_draws_a_study_once_a_minute_and_only_if_there_is_news(
    ours: OwnedStorage, theirs: OwnedStorage, study: optuna.Study
) -> None:
    def turns(pause: float) -> list[bool]:
        with ThreadPoolExecutor(6) as threads:
            asked = [
                threads.submit(storage.take_turn, study._study_id, pause)
                for storage in (ours, theirs) * 3
            ]
            return sorted(item.result() for item in asked)

    nobody, one = [False] * 6, [False] * 5 + [True]
    assert turns(60) == nobody, "no trial has ended"
    study.add_trial(optuna.trial.create_trial(value=0.5))
    assert turns(60) == one
    study.add_trial(optuna.trial.create_trial(value=0.6))
    assert turns(60) == nobody, "a minute has not passed"
    assert turns(0) == one
    assert turns(0) == nobody, "nothing is new"
    study.add_trial(optuna.trial.create_trial(value=0.7))
    others: list[Any] = ["", 7, {"at": "9999-01-01T00:00:00", "ended": 0}, {"at": 1, "ended": []}]
    for strange in others:
        ours.set_study_system_attr(study._study_id, TURN, strange)
        assert turns(60) == one, strange
