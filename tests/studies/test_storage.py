from pathlib import Path

import optuna
import pytest
import sqlalchemy

from data.errors import UserError
from studies.storage import (
    masked,
    open_database,
    open_storage,
    parse_url,
    quiet_optuna,
    storage_failure,
)
from tests.forked import PROCESSES


def test_sqlite_is_set_up_for_several_processes(tmp_path: Path) -> None:
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    with storage.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 60_000}


WAITING = 40


def _take_waiting_trials(url: str) -> list[int]:
    study = optuna.load_study(study_name="queue", storage=open_storage(url))
    taken = []
    with quiet_optuna():
        while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
            # A trial that was created because the queue ran empty gets its x by chance.
            trial = study.ask({"x": optuna.distributions.IntDistribution(0, 10_000)})
            if trial.number < WAITING:
                taken.append(int(trial.params["x"]))
    return taken


def test_no_waiting_trial_is_given_to_two_processes(storage_url: str) -> None:
    """With plain Optuna on SQLite this fails: both processes read that the trial is waiting."""
    storage = open_storage(storage_url, create=True)
    study = optuna.create_study(study_name="queue", storage=storage)
    for x in range(WAITING):
        study.enqueue_trial({"x": x})
    with PROCESSES.Pool(4) as pool:
        taken = [x for part in pool.map(_take_waiting_trials, [storage_url] * 4) for x in part]
    assert sorted(taken) == list(range(WAITING))


def _open(url: str) -> None:
    open_storage(url, create=True)


def test_processes_may_open_a_new_database_at_the_same_moment(storage_url: str) -> None:
    with PROCESSES.Pool(4) as pool:
        pool.map(_open, [storage_url] * 4)
    assert open_storage(storage_url).get_all_studies() == []


def test_a_postgresql_url_without_a_driver_means_psycopg() -> None:
    assert parse_url("postgresql://host/name").drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hpsearch.db", "not a database URL"),
        ("oracel://x", "not a database URL"),
        ("mysql://x/y", "not a database URL"),
        ("sqlite://", "in memory is not shared"),
        ("sqlite:///:memory:", "in memory is not shared"),
        ("sqlite:////no/such/folder/a.db", "no/such/folder/a.db: cannot be opened"),
        ("postgresql+psycopg://u:secret@127.0.0.1:1/x", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_the_password(
    url: str, said: str
) -> None:
    with pytest.raises(UserError) as error:
        open_storage(url, create=True)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_looking_does_not_create_a_database(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file yet"):
        open_storage(f"sqlite:///{tmp_path / 'a.db'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?password=pw&user=me", "postgresql://host/db?password=***&user=me"),
        ("postgresql://me:p@w/x@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p%40w@host/db", "postgresql://me:***@host/db"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("no url: pw", "(not a URL)"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_only_what_a_database_said_counts_as_a_storage_failure() -> None:
    error = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server\nclosed"))
    assert storage_failure(error) == "the storage failed: server closed"
    assert storage_failure(ValueError("x")) is None
