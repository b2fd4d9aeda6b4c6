"""What to do when the database does not answer: what passes by itself, and how long to wait for it.

PostgreSQL restarts or fails over, a network drops out, SQLite is locked by others. Every process of
a search meets that with a `Patience`; so it does when the checkpoints are out of reach that a trial
goes on from.
"""

import logging
import math
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

import optuna
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from studies.text import without_passwords

DEFAULT_SECONDS = 600.0
STORAGE_LOST_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: to be tried again later."""

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
LONGEST_STRETCH_SECONDS = 60.0
"""From a failure to the next attempt. If it is longer, it is not known what was between them."""
PAUSE_PER_WAIT = 3.0
LONGEST_RESPITE_SECONDS = 30.0
"""A server that hangs does not even refuse: each attempt takes seconds, in which nobody trains."""

# By class of https://www.postgresql.org/docs/current/errcodes-appendix.html
TRANSIENT_CLASSES = (
    "08",  # connection exception
    "40",  # deadlock, serialization failure
    "53",  # insufficient resources: connections, memory, disk
    "55",  # not in the state for it: a lock
    "57",  # operator intervention: shutdown, starting up
    "58",  # system error outside of PostgreSQL
)
READ_ONLY = "25006"  # A server that is no longer the primary one, or not yet.
# What a server says to a new connection has no code.
LASTING = ("authentication failed", "no password supplied", "pg_hba.conf", "does not exist")
# https://www.sqlite.org/rescode.html
TRANSIENT_IN_SQLITE = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_IOERR",
    "SQLITE_FULL",
    "SQLITE_CANTOPEN",
    "SQLITE_PROTOCOL",
)

STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What comes from a database."""

T = TypeVar("T")


CHECKPOINTS = "the place of the checkpoints"


class Unreachable(Exception):
    """Files of a study are where nobody can read them at the moment. They may well be whole."""


WAITED_FOR = (*STORAGE_ERRORS, Unreachable)

logger = logging.getLogger(__name__)


class StorageLost(Exception):
    """The database, or the checkpoints' place, did not answer for longer than patience lasts."""


class ProxyFailure(optuna.exceptions.StorageInternalError):
    """What a storage proxy, or the way to it, said in place of an answer."""

    def __init__(self, message: str, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


def reason(error: BaseException) -> str:
    """What the database itself said, in one line."""
    original = getattr(_database_error(error), "orig", None) or _database_error(error)
    return without_passwords(" ".join(str(original).split()))[:300]


def is_transient(error: BaseException) -> bool:
    """Whether an exception of a database is one that may pass without anybody's doing."""
    found = _database_error(error)
    if isinstance(found, ProxyFailure):
        return found.is_transient
    if isinstance(found, NoFreeConnection | Unreachable):
        return True
    if not isinstance(found, DBAPIError):
        return False
    if found.connection_invalidated:
        return True
    if isinstance(found.orig, sqlite3.Error):
        return getattr(found.orig, "sqlite_errorname", "").startswith(TRANSIENT_IN_SQLITE)
    code = getattr(found.orig, "sqlstate", None)
    if code:
        return str(code).startswith(TRANSIENT_CLASSES) or code == READ_ONLY
    # A connection that is refused, or not answered in time.
    return isinstance(found, OperationalError) and not any(
        text in str(found.orig) for text in LASTING
    )


def _database_error(error: BaseException) -> BaseException:
    """Optuna wraps what SQLAlchemy raises."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        return error.__cause__
    return error


class Patience:
    """Waits for a database that does not answer, for a limited time in one stretch.

    Args:
        of: what is waited for, in messages.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        of: str = "the storage",
    ) -> None:
        self.seconds = seconds
        self._clock, self._of = clock, of
        self._since: float | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._next = 0.0
        self._failed_at = self._heard_at = -math.inf
        self.trouble: str | None = None
        """What the database said last, if it does not answer at the moment."""

    @property
    def waited(self) -> float:
        """Seconds for which the database has not answered; 0 if it does."""
        since = self._since  # Another thread may have an answer just now.
        return 0.0 if since is None else self._clock() - since

    def heard(self) -> None:
        """The database has answered this process to something else, such as a heartbeat.

        Where it is called but once in many minutes, two short outages are then not one long one.
        """
        self._heard_at = self._clock()

    def call(self, function: Callable[[], T], may_wait: Callable[[], bool] = lambda: True) -> T:
        """Call a function until the database answers.

        Args:
            function: called again after a transient error, so it may happen twice.
            may_wait: asked before each pause; False ends the waiting.

        Raises:
            StorageLost: the patience is at its end, or there is no time to wait.
            Exception: what the function raises otherwise.
        """
        while True:
            try:
                result = function()
            except WAITED_FOR as error:
                self._failed(error)
                if not may_wait():
                    raise StorageLost(f"{self._of} does not answer ({self.trouble})") from error
            else:
                self._answered()
                return result
            while may_wait() and (pause := self._next - self._clock()) > 0:
                time.sleep(min(pause, FIRST_PAUSE_SECONDS))

    def attempt(self, function: Callable[[], T], otherwise: T) -> T:
        """Call a function once, but not soon after the database did not answer.

        Returns:
            What the function returns, or `otherwise` if the database does not answer.

        Raises:
            StorageLost: the patience is at its end.
            Exception: what the function raises otherwise.
        """
        started = self._clock()
        if self._since is not None and started < self._next:
            return otherwise
        if self._failed_at < self._heard_at and started - self._failed_at > LONGEST_STRETCH_SECONDS:
            self._since = None
        try:
            result = function()
        except STORAGE_ERRORS as error:
            self._failed(error)
            now = self._clock()
            respite = min(PAUSE_PER_WAIT * (now - started), LONGEST_RESPITE_SECONDS)
            self._next = max(self._next, now + respite)
            return otherwise
        self._answered()
        return result

    def _failed(self, error: Exception) -> None:
        if not is_transient(error):
            raise error
        now = self._clock()
        self.trouble = reason(error)
        self._failed_at = now
        if self._since is None:
            self._since, self._pause = now, FIRST_PAUSE_SECONDS
            logger.warning(
                "%s does not answer (%s); trying again for %.0f s",
                self._of,
                self.trouble,
                self.seconds,
            )
        if now - self._since > self.seconds:
            raise StorageLost(
                f"{self._of} has not answered for {now - self._since:.0f} s ({self.trouble})"
            ) from error
        self._next = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _answered(self) -> None:
        if self._since is not None:
            logger.warning("%s answers again, after %.0f s", self._of, self.waited)
        self._since, self.trouble = None, None
