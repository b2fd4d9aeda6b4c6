import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from data.errors import UserError
from search.budget import Turn, claim
from studies import proxied, proxy
from studies.database import DatabaseStorage
from studies.ownership import OwnedStorage
from studies.patience import ProxyFailure, is_transient
from studies.storage import open_database, open_storage
from tests.conftest import Postgres

SECRET = "3f9c1d5a77e24b08"


@pytest.fixture
def database(tmp_path: Path) -> DatabaseStorage:
    return open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a database; the URL for clients."""
    servers = []

    def start(database: DatabaseStorage, secret: str | None = None) -> str:
        server, port = proxy.start(database, "127.0.0.1", 0, secret)
        servers.append(server)
        return f"grpc://127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def waiting(storage: OwnedStorage, study: optuna.Study) -> int:
    return storage.create_new_trial(study._study_id, create_trial(state=TrialState.WAITING))


def refusal(url: str) -> str:
    with pytest.raises(UserError) as error:
        open_storage(url)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_each_thread_of_a_proxy_keeps_its_connection(postgres_url: str) -> None:
    storage = open_database(postgres_url, connections=proxy.THREADS)
    made: list[object] = []
    sqlalchemy.event.listen(storage.engine, "connect", lambda made_now, _: made.append(made_now))

    def ask(_: int) -> None:
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(0.05)")

    with ThreadPoolExecutor(proxy.THREADS) as threads:
        for _ in range(3):
            list(threads.map(ask, range(proxy.THREADS)))
    storage.engine.dispose()
    assert 0 < len(made) <= proxy.THREADS


def test_who_does_not_know_the_token_is_refused(
    database: DatabaseStorage,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = serve(database, SECRET)
    assert "cannot be opened: the proxy wants a token, and not this one" in refusal(url)
    monkeypatch.setenv("HPSEARCH_PROXY_TOKEN", SECRET[:-1])
    assert SECRET[:-1] not in refusal(url)
    monkeypatch.setenv("HPSEARCH_PROXY_TOKEN", SECRET)
    assert open_storage(url).get_all_studies() == []
    monkeypatch.delenv("HPSEARCH_PROXY_TOKEN")
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("HPSEARCH_PROXY_TOKEN_FILE", str(file))
    assert open_storage(url).get_all_studies() == []
    assert caplog.text.count("without the token") == 2
    assert SECRET[:-1] not in caplog.text


@pytest.mark.parametrize("text", [b"", b" \n", b"two\nlines", "ü".encode(), b"\xff"])
def test_a_token_is_one_line(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(text)
    with pytest.raises(UserError, match=f"token file {file}: "):
        proxied.proxy_secret(file)


@pytest.mark.parametrize(
    "url",
    [
        "grpc://",
        "grpc://host",
        "grpc://host:port",
        "grpc://host:70000",
        "grpc://token@host:1",
        "grpc://host:1@2",
    ],
)
def test_a_url_that_is_none_is_not_repeated(url: str) -> None:
    assert refusal(url) == (
        "storage: write grpc://host:port (a token belongs in HPSEARCH_PROXY_TOKEN)"
    )


def test_where_nobody_listens_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"grpc://127.0.0.1:{free.getsockname()[1]}"
        assert refusal(url).startswith(f"storage {url}: cannot be opened: ")


def test_a_proxy_of_plain_optuna_is_refused(database: DatabaseStorage) -> None:
    """It would let anybody write to any trial."""
    from optuna.storages._grpc.server import make_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = make_server(database, "127.0.0.1", port)
    server.start()
    try:
        assert "what answers there is not hpsearch" in refusal(f"grpc://127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


def test_a_second_proxy_on_the_same_port_is_refused(
    database: DatabaseStorage, serve: Serve
) -> None:
    port = int(serve(database).rpartition(":")[2])
    with pytest.raises(OSError, match=str(port)):
        proxy.start(database, "127.0.0.1", port, None)


def test_a_proxy_that_says_nothing_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxied, "CALL_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(ProxyFailure) as error:
            proxied.ProxiedStorage("127.0.0.1", silent.getsockname()[1], None)
    assert time.monotonic() - started < 5
    assert is_transient(error.value)


def test_a_database_that_does_not_answer_is_an_outage_to_clients(
    postgres_server: Postgres, postgres_url: str, serve: Serve
) -> None:
    storage = open_storage(serve(open_database(postgres_url)))
    name = sqlalchemy.make_url(postgres_url).database
    server = sqlalchemy.create_engine(postgres_server.url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        with pytest.raises(ProxyFailure, match="not currently accepting connections") as error:
            storage.get_all_studies()
        assert is_transient(error.value)
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert storage.get_all_studies() == []


def test_what_is_not_an_outage_comes_through_as_itself(
    database: DatabaseStorage, serve: Serve
) -> None:
    storage = open_storage(serve(database))
    study = optuna.create_study(storage=storage, study_name="s")
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(storage=storage, study_name="s")
    with pytest.raises(KeyError):
        optuna.load_study(storage=storage, study_name="other")
    with pytest.raises(KeyError):
        storage.take(99)
    trial = waiting(storage, study)
    assert storage.take(trial)
    storage.set_trial_param(trial, "x", 0.5, FloatDistribution(0, 1))
    storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_user_attr(trial, "late", 1)
    other = waiting(storage, study)
    assert storage.take(other)
    with pytest.raises(ValueError):  # noqa: PT011 - Optuna's client leaves the words out.
        storage.set_trial_param(other, "x", 0, optuna.distributions.IntDistribution(0, 1))


def test_a_running_trial_goes_on_after_the_proxy_was_started_again(
    database: DatabaseStorage,
) -> None:
    server, port = proxy.start(database, "127.0.0.1", 0, None)
    storage = open_storage(f"grpc://127.0.0.1:{port}")
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    trial = waiting(storage, study)
    assert storage.take(trial)
    storage.set_trial_intermediate_value(trial, 1, 0.5)
    server.stop(None).wait()
    with pytest.raises(ProxyFailure) as error:
        storage.record_heartbeat(trial)
    assert is_transient(error.value)
    server, _ = proxy.start(open_database(database.url), "127.0.0.1", port, None)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                storage.record_heartbeat(trial)
                break
            except ProxyFailure:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        # With Optuna's own cache, the proxy would not know the trial.
        storage.set_trial_param(trial, "x", 0.5, FloatDistribution(0, 1))
        study.tell(optuna.trial.Trial(study, trial), 0.7)
    finally:
        server.stop(None).wait()
    found = database.get_trial(trial)
    assert (found.value, found.params) == (0.7, {"x": 0.5})


def test_what_a_client_has_given_up_is_not_done_later(
    postgres_url: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial taken so would be nobody's: the client has tried again, with another token."""
    monkeypatch.setattr(proxy, "THREADS", 1)
    database = open_database(postgres_url)
    url = serve(database)
    first, second = open_storage(url), open_storage(url)
    study = optuna.create_study(storage=first, study_name="s")
    blocked, wanted = waiting(first, study), waiting(first, study)
    monkeypatch.setattr(proxied, "CALL_SECONDS", 1.0)
    with ThreadPoolExecutor(1) as pool, database.engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT 1 FROM trials WHERE trial_id = {blocked} FOR UPDATE")
        blocking = pool.submit(first.take, blocked)
        time.sleep(0.3)
        with pytest.raises(ProxyFailure):
            second.take(wanted)
        with pytest.raises(ProxyFailure):
            blocking.result()
        time.sleep(1)  # To the proxy, a client's time ends a little later than to the client.
    deadline = time.monotonic() + 20
    while database.owner(blocked) is None:  # That had begun.
        assert time.monotonic() < deadline
        time.sleep(0.05)
    monkeypatch.setattr(proxied, "CALL_SECONDS", 30.0)
    assert second.get_trial(wanted).state == TrialState.WAITING
    assert second.take(wanted)


def test_an_answer_that_was_lost_costs_no_trial(
    postgres_url: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(postgres_url)
    storage = open_storage(serve(database))
    study = optuna.create_study(storage=storage, study_name="s")
    monkeypatch.setattr(proxied, "CALL_SECONDS", 1.0)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1 FROM studies FOR UPDATE")
        with pytest.raises(ProxyFailure):
            claim(study, storage, 1, may_create=True)
    # Now the proxy makes the trial that nobody waits for any more.
    monkeypatch.setattr(proxied, "CALL_SECONDS", 30.0)
    claimed = claim(study, storage, 1, may_create=True)
    assert isinstance(claimed, int)
    storage.end(claimed, TrialState.PRUNED)
    assert claim(study, storage, 1, may_create=True) is Turn.DONE
    assert [trial.state for trial in database.get_all_trials(study._study_id)] == [
        TrialState.PRUNED
    ]


def test_clients_that_read_at_once_see_what_they_have_written(
    postgres_url: str, serve: Serve
) -> None:
    """They share what the proxy reads, but nothing that was read before they asked."""
    url = serve(open_database(postgres_url))
    study_id = optuna.create_study(storage=open_storage(url), study_name="s")._study_id
    all_ready = threading.Barrier(6)

    def work(_: int) -> list[bool]:
        storage = open_storage(url)
        trial = storage.create_new_trial(study_id)
        all_ready.wait()
        seen = []
        for step in range(20):
            if step % 2:
                storage.report(trial, {step: 0.5}, {}, {})
            else:
                storage.set_trial_intermediate_value(trial, step, 0.5)
            trials = storage.get_all_trials(study_id, deepcopy=False)
            (found,) = (item for item in trials if item._trial_id == trial)
            seen.append(step in found.intermediate_values)
        storage.end(trial, TrialState.PRUNED, 0.5)
        seen.append(storage.get_trial(trial).state == TrialState.PRUNED)
        return seen

    with ThreadPoolExecutor(6) as pool:
        assert [seen for part in pool.map(work, range(6)) for seen in part] == [True] * 126
