import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.exc import DBAPIError

from studies.deadline import ImpatientConnection
from studies.patience import is_transient, reason
from studies.storage import IDLE_SECONDS, open_database
from tests.conftest import Postgres

ALLOWED = b"R\0\0\0\x08\0\0\0\0"
READY = b"Z\0\0\0\x05I"
LONG = 20.0
"""Longer than any of these waits is, on a busy machine."""


@contextmanager
def silent_server() -> Iterator[str]:
    """Of PostgreSQL's protocol: it lets everybody in, and then neither reads nor says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted = []

        def accept() -> None:
            connection, _ = server.accept()
            accepted.append(connection)
            connection.recv(1024)
            connection.sendall(ALLOWED + READY)

        threading.Thread(target=accept, daemon=True).start()
        port = server.getsockname()[1]
        yield f"host=127.0.0.1 port={port} user=me sslmode=disable gssencmode=disable"
        for connection in accepted:
            connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientConnection, "longest_silence", 1.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("size", [1, 50_000_000], ids=["short", "more than it takes"])
def test_a_server_that_says_nothing_is_given_up(size: int) -> None:
    with silent_server() as server:
        connection = ImpatientConnection.connect(server)
        started = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match="no answer for 1 s"):
            connection.execute("SELECT %s", ["x" * size])
        assert connection.closed
        with pytest.raises(psycopg.OperationalError):
            connection.rollback()
        assert 1 < time.monotonic() - started < LONG


@pytest.mark.usefixtures("impatient")
def test_a_long_answer_that_flows_is_not_cut(postgres_url: str) -> None:
    engine = open_database(postgres_url).engine
    statement = "SELECT repeat('x', 20000), pg_sleep(0.2) FROM generate_series(1, 12)"
    with engine.connect() as connection:
        started = time.monotonic()
        rows = connection.exec_driver_sql(statement).all()
    assert len(rows) == 12
    assert time.monotonic() - started > 2


@pytest.mark.usefixtures("impatient")
def test_what_takes_too_long_is_cancelled_and_counts_as_an_outage(postgres_url: str) -> None:
    engine = open_database(postgres_url).engine
    with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.exec_driver_sql("SELECT pg_sleep(600)")
    assert caught.value.connection_invalidated
    assert is_transient(caught.value)
    assert reason(caught.value) == "no answer for 1 s"
    others = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%(600)'"
    with engine.connect() as connection:
        deadline = time.monotonic() + LONG
        while connection.exec_driver_sql(f"{others} AND state = 'active'").scalar():
            connection.rollback()  # Else it is shown the same again.
            assert time.monotonic() < deadline


def test_a_connection_is_looked_at_before_its_use_in_less_than_an_answer_may_take(
    stoppable: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.storage.CONNECT_SECONDS", 2)
    engine = open_database(stoppable.url).engine
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    time.sleep(IDLE_SECONDS)
    with stoppable.hanging():
        started = time.monotonic()
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            engine.connect()
        assert time.monotonic() - started < LONG
        assert is_transient(caught.value)
        engine.dispose()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
