import math
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial

from search.lost import SUSPICION_SECONDS, LostTrials
from studies.config import load_study_file
from studies.database import DatabaseStorage
from studies.patience import is_transient
from studies.results import LOSSES
from studies.storage import open_database
from studies.study import OpenedStudy, create_or_continue
from tests.conftest import Postgres, forget_heartbeats


class Watch:
    """Somebody who looks for lost trials, at a time of the test's choice."""

    def __init__(self, opened: OpenedStudy, storage: DatabaseStorage) -> None:
        self.now = 0.0
        self.lost_trials = LostTrials(opened, storage, lambda: self.now)

    def looks_at(self, now: float) -> None:
        self.now = now
        self.lost_trials.take_back()


def make_study(url: str) -> OpenedStudy:
    storage = open_database(url, create=True)
    config = load_study_file("quickstart", {"trial.max_retries": 2})
    opened, _ = create_or_continue(storage, config, "digest", [])
    return opened


def take(opened: OpenedStudy, storage: DatabaseStorage) -> int:
    waiting = create_trial(state=TrialState.WAITING)
    trial = storage.create_new_trial(opened.study._study_id, waiting)
    assert storage.take(trial)
    return trial


def suspect(opened: OpenedStudy, storage: DatabaseStorage) -> tuple[int, Watch]:
    """A running trial that is seen, at time 0, to give no sign of life."""
    trial = take(opened, storage)
    forget_heartbeats(storage)
    watch = Watch(opened, storage)
    watch.looks_at(0)
    return trial, watch


@pytest.fixture
def opened(tmp_path: Path) -> OpenedStudy:
    return make_study(f"sqlite:///{tmp_path / 'a.db'}")


@pytest.fixture
def storage(opened: OpenedStudy, tmp_path: Path) -> DatabaseStorage:
    """A view of its own, as another process has."""
    return open_database(f"sqlite:///{tmp_path / 'a.db'}")


def test_a_trial_that_stays_silent_is_taken_back(
    opened: OpenedStudy, storage: DatabaseStorage
) -> None:
    trial, watch = suspect(opened, storage)
    watch.looks_at(SUSPICION_SECONDS - 1)
    assert storage.get_trial(trial).state == TrialState.RUNNING
    watch.looks_at(SUSPICION_SECONDS)
    assert storage.get_trial(trial).state == TrialState.WAITING
    assert storage.get_trial(trial).user_attrs[LOSSES] == 1


def test_a_trial_whose_heart_beats_again_is_left_alone(
    opened: OpenedStudy, storage: DatabaseStorage
) -> None:
    """As after an outage of the database, which nobody could reach."""
    trial, watch = suspect(opened, storage)
    storage.record_heartbeat(trial)
    watch.looks_at(SUSPICION_SECONDS)
    forget_heartbeats(storage)
    watch.looks_at(SUSPICION_SECONDS + 1)
    assert storage.get_trial(trial).state == TrialState.RUNNING, "suspected anew"


def test_a_beat_between_the_look_and_the_taking_saves_a_trial(
    opened: OpenedStudy, storage: DatabaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, watch = suspect(opened, storage)
    look = storage.lost_trials

    def looked_and_late(study_id: int) -> dict[int, str | None]:
        found = look(study_id)
        storage.record_heartbeat(trial)
        return found

    monkeypatch.setattr(storage, "lost_trials", looked_and_late)
    watch.looks_at(SUSPICION_SECONDS)
    assert storage.get_trial(trial).state == TrialState.RUNNING


def test_an_outage_ends_all_suspicion(stoppable: Postgres) -> None:
    opened = make_study(stoppable.url)
    storage = open_database(stoppable.url)
    trial, watch = suspect(opened, storage)
    stoppable.stop()
    with pytest.raises(Exception) as caught:  # noqa: PT011
        watch.looks_at(10)
    assert is_transient(caught.value)
    stoppable.start()
    watch.looks_at(20)
    assert storage.get_trial(trial).state == TrialState.RUNNING
    watch.looks_at(20 + SUSPICION_SECONDS)
    assert storage.get_trial(trial).state == TrialState.WAITING


def test_the_owner_knows_how_long_nobody_can_have_taken_its_trial(
    opened: OpenedStudy, storage: DatabaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("studies.ownership._now", lambda: now)
    trial = take(opened, storage)
    assert storage.holds(trial)
    now += 47
    assert storage.holds(trial)
    now += 2
    assert not storage.holds(trial), "it could be lost within seconds"
    storage.record_heartbeat(trial)
    assert storage.holds(trial)
    assert not open_database(storage.url).holds(trial), "another's"


def test_what_the_owner_knows_of_a_frozen_machine_s_trial_is_asked_of_the_database(
    stoppable: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose clocks have all stood still."""
    opened, storage = make_study(stoppable.url), open_database(stoppable.url)
    mine, other = take(opened, storage), take(opened, storage)
    assert storage.is_ours(mine)
    assert open_database(stoppable.url).take_away(other, storage.owner(other), 3, "silence")
    assert storage.holds(other)
    assert not storage.is_ours(other)
    stoppable.stop()
    assert storage.is_ours(mine), "as far as is known here"
    monkeypatch.setattr("studies.ownership._now", lambda: math.inf)
    assert not storage.is_ours(mine)


def test_a_trial_that_was_taken_when_the_connection_was_lost_is_ours(
    opened: OpenedStudy, storage: DatabaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = create_trial(state=TrialState.WAITING)
    trial = storage.create_new_trial(opened.study._study_id, waiting)
    commit = sqlalchemy.orm.Session.commit

    def committed_and_cut(session: sqlalchemy.orm.Session) -> None:
        commit(session)
        raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("connection lost"))

    with monkeypatch.context() as cut:
        cut.setattr(sqlalchemy.orm.Session, "commit", committed_and_cut)
        with pytest.raises(optuna.exceptions.StorageInternalError):
            storage.take(trial)
    assert storage.may_have_taken(trial)
    assert not open_database(storage.url).take(trial)
    assert storage.take(trial)
    storage.set_trial_user_attr(trial, "a", 1)
    assert not storage.may_have_taken(trial)
