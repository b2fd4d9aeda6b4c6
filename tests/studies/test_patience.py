import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from sqlalchemy.exc import OperationalError

from studies.patience import Patience, StorageLost, is_transient, reason
from studies.storage import IDLE_SECONDS, open_storage
from tests.conftest import Postgres


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()

    def sleep(seconds: float) -> None:
        found.now += seconds

    monkeypatch.setattr("studies.patience.time.sleep", sleep)
    return found


def locked() -> OperationalError:
    original = sqlite3.OperationalError("database is locked")
    original.sqlite_errorname = "SQLITE_BUSY"
    return OperationalError("SELECT 1", {}, original)


def failing(*errors: Exception) -> Callable[[], str]:
    """A function that raises these one by one, and then returns."""
    left = list(errors)

    def function() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return function


def error_of(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


def test_a_call_is_repeated_until_the_database_answers(clock: Clock) -> None:
    patience = Patience(60, clock)
    assert patience.call(failing(*[locked()] * 5)) == "answer"
    assert 5 < clock.now < 20, "with ever longer pauses"
    assert patience.waited == 0
    assert patience.trouble is None


def test_the_patience_counts_from_the_first_failure_of_a_stretch(clock: Clock) -> None:
    patience = Patience(60, clock)
    with pytest.raises(StorageLost, match=r"has not answered for 6\d s \(database is locked\)"):
        patience.call(failing(*[locked()] * 100))
    assert 60 < clock.now < 75


def test_two_short_outages_are_not_a_long_one_if_a_heart_has_beaten_between_them(
    clock: Clock,
) -> None:
    def fails_again_after_an_epoch(beats: bool) -> None:
        patience = Patience(600, clock)
        assert patience.attempt(failing(locked()), "later") == "later"
        clock.now += 450
        if beats:
            patience.heard()
        clock.now += 450
        assert patience.attempt(failing(locked()), "later") == "later"
        assert patience.waited == 0

    fails_again_after_an_epoch(beats=True)
    with pytest.raises(StorageLost, match="has not answered for 900 s"):
        fails_again_after_an_epoch(beats=False)


def test_a_heart_that_beats_does_not_make_a_call_wait_for_ever(clock: Clock) -> None:
    patience = Patience(60, clock)

    def writes() -> None:
        patience.heard()
        raise locked()

    with pytest.raises(StorageLost, match=r"has not answered for 6\d s"):
        patience.call(writes)


def test_a_success_begins_the_count_anew(clock: Clock) -> None:
    patience = Patience(20, clock)
    for _ in range(10):
        patience.call(failing(*[locked()] * 4))
    assert clock.now > 20


def test_what_will_not_pass_is_raised_at_once(clock: Clock) -> None:
    wrong = OperationalError("SELECT 1", {}, sqlite3.OperationalError("no such table: trials"))
    with pytest.raises(OperationalError):
        Patience(60, clock).call(failing(wrong))
    with pytest.raises(ZeroDivisionError):
        Patience(60, clock).call(lambda: 1 / 0)
    assert clock.now == 0


def test_who_has_no_time_does_not_wait(clock: Clock) -> None:
    with pytest.raises(StorageLost, match="does not answer"):
        Patience(60, clock).call(failing(locked()), may_wait=lambda: False)
    assert clock.now == 0


def test_attempts_follow_each_other_with_pauses(clock: Clock) -> None:
    patience = Patience(60, clock)
    tries = 0

    def function() -> str:
        nonlocal tries
        tries += 1
        raise locked()

    for _ in range(30):
        assert patience.attempt(function, "nothing") == "nothing"
        clock.now += 1
    assert 4 <= tries <= 8
    assert patience.waited == 30
    clock.now += 10
    assert patience.attempt(failing(), "nothing") == "answer"
    clock.now += 100
    assert patience.attempt(failing(locked()), "nothing") == "nothing", "a stretch of its own"


def test_attempts_at_a_server_that_hangs_take_little_of_the_time(clock: Clock) -> None:
    patience = Patience(600, clock)
    waited = 0

    def function() -> str:
        nonlocal waited
        waited += 10
        clock.now += 10
        raise locked()

    while clock.now < 300:
        assert patience.attempt(function, "nothing") == "nothing"
        clock.now += 1
    assert 60 <= waited <= 90
    while patience.attempt(failing(), "nothing") == "nothing":
        clock.now += 1
    assert clock.now < 350, "that it answers again is found soon all the same"


def test_a_stopped_server_is_waited_for(stoppable: Postgres) -> None:
    storage = open_storage(stoppable.url)
    study = optuna.create_study(storage=storage)
    stoppable.stop()
    error = error_of(study.ask)
    assert is_transient(error), error
    assert "\n" not in reason(error)
    patience = Patience(30)
    assert not patience.attempt(lambda: bool(study.ask()), otherwise=False)
    stoppable.start()
    assert patience.call(study.ask).number == 0


@pytest.mark.parametrize("idle", [True, False])
def test_connections_that_were_cut_are_replaced(postgres_url: str, idle: bool) -> None:
    """Those that nobody used for a while before they are used, the others with patience."""
    storage = open_storage(postgres_url)
    study = optuna.create_study(storage=storage)
    patience = Patience(30)
    others = sqlalchemy.create_engine(postgres_url)
    for number in range(3):
        with others.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        if idle:
            time.sleep(IDLE_SECONDS)
        trial = study.ask() if idle else patience.call(study.ask)
        assert trial.number == number
    others.dispose()


def test_a_machine_that_does_not_answer_is_waited_for() -> None:
    """As one that is off, or behind a broken network: it refuses no connection either."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        url = f"postgresql+psycopg://me@{host}:{port}/hpsearch?connect_timeout=2"
        error = error_of(sqlalchemy.create_engine(url).connect)
    assert "timeout" in reason(error)
    assert is_transient(error)


def test_what_is_wrong_in_postgresql_is_not_waited_for(postgres_url: str) -> None:
    engine = sqlalchemy.create_engine(postgres_url)
    for statement in ("SELECT * FROM nowhere", "SELECT 1 / 0", "SELECT 'a'::int"):
        with engine.connect() as connection:
            error = error_of(lambda c=connection, s=statement: c.exec_driver_sql(s))  # type: ignore[misc]
        assert not is_transient(error), error
    missing = sqlalchemy.make_url(postgres_url).set(database="missing")
    assert not is_transient(error_of(sqlalchemy.create_engine(missing).connect))
    engine.dispose()


def test_a_lock_in_sqlite_is_waited_for_and_a_missing_table_is_not(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'a.db'}", connect_args={"timeout": 0})
    with engine.connect() as ours, engine.connect() as theirs:
        ours.exec_driver_sql("CREATE TABLE t (x int)")
        ours.commit()
        ours.exec_driver_sql("BEGIN EXCLUSIVE")
        assert is_transient(error_of(lambda: theirs.exec_driver_sql("INSERT INTO t VALUES (1)")))
        ours.rollback()
        missing = error_of(lambda: theirs.exec_driver_sql("INSERT INTO nowhere VALUES (1)"))
    assert not is_transient(missing)
