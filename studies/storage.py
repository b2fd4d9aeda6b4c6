"""Opening the database that a study lives in."""

import math
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from data.errors import UserError
from studies.database import READING, DatabaseStorage
from studies.ownership import OwnedStorage
from studies.patience import STORAGE_ERRORS, Patience, reason
from studies.text import masked_url, printable

DEFAULT_URL = "sqlite:///hpsearch.db"
URL_VARIABLE = "HPSEARCH_STORAGE"
PROXY = "grpc://"
DATABASES = ("sqlite", "postgresql")

HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
"""Without a heartbeat for so long, a running trial counts as dead."""

SQLITE_BUSY_SECONDS = 60
CONNECT_SECONDS = 10
IDLE_SECONDS = 0.5
"""A connection that has not been used for so long may have been cut."""
OPEN_ATTEMPTS = 5
"""Processes that open a new database at once may collide while they create its tables."""

FEW_CONNECTIONS = 5
"""Of a process with few threads that use them. Further ones are closed after each use."""

T = TypeVar("T")


class NotADatabase(UserError):
    """What was given is not the URL of a database that processes can share."""


def open_storage(
    url: str | None = None, create: bool = False, patience: Patience | None = None
) -> OwnedStorage:
    """Open a database, with its tables created where there are none; or what a proxy serves.

    Args:
        url: an SQLAlchemy URL; `postgresql://` means the psycopg driver. Or `grpc://host:port`. By
            default it is that of `HPSEARCH_STORAGE`, or `hpsearch.db` here, as for the command.
        create: whether an SQLite file is created if it is missing.
        patience: to wait with for a database that does not answer; without it, it must do so now.

    Raises:
        UserError: the URL is malformed, its driver is not installed, or it cannot be reached.
        StorageLost: the patience was not enough.
    """
    url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    if not url.startswith(PROXY):
        try:
            return open_database(url, create, patience)
        except NotADatabase as error:
            raise UserError(f"{error}; or grpc://host:port of a storage proxy") from error

    def opened() -> OwnedStorage:
        from studies.proxied import open_proxied  # gRPC is an extra.

        with quiet_optuna():
            return open_proxied(url)

    return _opened(url, opened, patience)


def open_database(
    url: str,
    create: bool = False,
    patience: Patience | None = None,
    connections: int = FEW_CONNECTIONS,
) -> DatabaseStorage:
    """Open a database itself; as `open_storage`.

    Args:
        connections: how many are kept open at most, once they were needed at the same time.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not create:
        file = Path(str(parsed.database))
        if not file.exists():
            raise UserError(
                f"storage {masked(url)}: no such file yet; hpsearch run makes it, "
                "of a study file or a study that ships (quickstart, cifar10)"
            )
    return _opened(url, lambda: _open(parsed, connections), patience)


def _opened(url: str, function: Callable[[], T], patience: Patience | None) -> T:
    try:
        return patience.call(function) if patience else function()
    except STORAGE_ERRORS as error:
        raise UserError(f"storage {masked(url)}: cannot be opened: {reason(error)}") from error
    except ImportError as error:
        extra = "proxy" if url.startswith(PROXY) else "postgres"
        raise UserError(
            f"storage {masked(url)}: the driver for {url.partition(':')[0]} is not installed; "
            f"try: pip install -e '.[{extra}]'"
        ) from error


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's warnings of what is done here knowingly.

    That is: features that it calls experimental, and heartbeats with ask and tell (where each
    worker beats by itself).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        yield


def parse_url(url: str) -> URL:
    """Check a storage URL without connecting.

    Raises:
        UserError: it is not an SQLAlchemy URL, or a database that processes cannot share.
    """
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if "@" in f"{parsed.host}{parsed.database}" and parsed.password is not None:
            # Else a part of it is taken for the host, and shown in errors.
            raise UserError("storage: an @ within a password is written %40 in a URL")
        if parsed.get_backend_name() not in DATABASES:
            raise NoSuchModuleError
        parsed.get_dialect()
    # ValueError: of what stands where a port should, which may be a part of a password.
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise NotADatabase(
            "storage: not a database URL for PostgreSQL or SQLite; write sqlite:///hpsearch.db or "
            "postgresql+psycopg://user@host/database"
        ) from None
    except ImportError:
        return parsed  # The driver is missing, which is said when it is opened.
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError("storage: an SQLite database in memory is not shared; name a file")
    return parsed


def masked(url: str) -> str:
    """The URL as it may be shown: without its password."""
    try:
        sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        return "(not a URL)"
    return printable(masked_url(url))


def _open(url: URL, connections: int) -> DatabaseStorage:
    for attempt in range(1, OPEN_ATTEMPTS + 1):
        try:
            return _open_once(url, connections)
        except STORAGE_ERRORS as error:
            if attempt == OPEN_ATTEMPTS or not _is_creation_race(reason(error)):
                raise
            time.sleep(0.2 * attempt)
    raise AssertionError("unreachable")


def _open_once(url: URL, connections: int) -> DatabaseStorage:
    sqlite = url.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = {"pool_size": connections}
    if sqlite:
        arguments["connect_args"] = {"timeout": SQLITE_BUSY_SECONDS}
    elif url.get_backend_name() == "postgresql":
        # Without these, a server that vanished without a word is waited for for many minutes.
        options = {
            "connect_timeout": CONNECT_SECONDS,
            "tcp_user_timeout": 1000 * CONNECT_SECONDS,
            "keepalives_idle": CONNECT_SECONDS,
            "keepalives_interval": CONNECT_SECONDS,
        }
        if url.get_driver_name() == "psycopg":
            from studies.deadline import connecting  # The driver is an extra.

            arguments["creator"] = connecting(url, options)
        else:
            arguments["connect_args"] = options
    with quiet_optuna():
        storage = DatabaseStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=arguments,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=STALE_SECONDS,
        )
    _ping_after_idleness(storage.engine)
    if sqlite:
        _configure_sqlite(storage.engine)
    # Connections that were made before know nothing of this; and Optuna has left two, of which a
    # worker needs one. A server has not many: PostgreSQL allows 100, if not told otherwise.
    storage.engine.dispose()
    return storage


def _ping_after_idleness(engine: sqlalchemy.Engine) -> None:
    """Replace a connection that was cut while nobody used it.

    SQLAlchemy's own `pool_pre_ping` asks before each transaction, a quarter of all questions.
    """

    @sqlalchemy.event.listens_for(engine, "checkin")
    def checkin(_: object, record: Any) -> None:
        record.info["returned"] = time.monotonic()

    @sqlalchemy.event.listens_for(engine, "checkout")
    def checkout(connection: Any, record: Any, _: object) -> None:
        if time.monotonic() - record.info.get("returned", math.inf) < IDLE_SECONDS:
            return
        within = getattr(connection, "answering_within", nullcontext)
        try:
            with within(CONNECT_SECONDS):
                engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            # The pool makes a new one, and does not trust its others.
            raise sqlalchemy.exc.InvalidatePoolError from error


def _configure_sqlite(engine: sqlalchemy.Engine) -> None:
    """Make SQLite fit for several processes.

    Optuna reads and then writes in one transaction, for instance to take a waiting trial. SQLite
    takes its lock at the first write, so that two processes may both read "waiting"; a transaction
    that takes the lock when it begins cannot be interleaved so. One that only reads needs none.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # The driver begins no transactions of its own.
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_SECONDS * 1000}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        reading = READING.keys() <= connection.get_execution_options().keys()
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _is_creation_race(reason: str) -> bool:
    return any(
        phrase in reason.lower()
        for phrase in ("already exists", "duplicate key", "unique constraint", "database is locked")
    )


def storage_failure(error: BaseException) -> str | None:
    """What a database said in this exception, or None if it is not of a database."""
    if isinstance(error, STORAGE_ERRORS):
        return f"the storage failed: {reason(error)}"
    if _comes_from_a_storage(error):
        # What is stored is not what Optuna writes, or it was deleted in the meantime.
        return f"the storage cannot be read: {type(error).__name__}: {reason(error)}"
    return None


def _comes_from_a_storage(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")) for frame in frames]
    storages = ("optuna.storages.", "studies.database", "studies.proxied", "studies.standing")
    return any(module.startswith(storages) for module in modules)
