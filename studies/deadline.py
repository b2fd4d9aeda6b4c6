"""Connections to PostgreSQL that do not wait for ever for a server that hangs.

A machine that is frozen, or a disk that stands still, leaves connections open: the kernel there
takes what it is sent, and nobody answers.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from sqlalchemy.engine import URL

ANSWER_SECONDS = 30.0
"""Of silence in place of an answer. Less than that after which a trial counts as lost."""
CANCEL_SECONDS = 2.0


class ImpatientConnection(psycopg.Connection[Any]):
    """A connection that is given up when the server has been silent for too long."""

    longest_silence = ANSWER_SECONDS

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:
        return super().wait(self._unless_silent(gen), *arguments, **options)

    def _unless_silent(self, gen: PQGen[RV]) -> PQGen[RV]:
        """The same steps, to each of which psycopg says ten times a second what is ready.

        Raises:
            OperationalError: nothing was, for too long. The connection is closed.
        """
        try:
            wanted = next(gen)
            heard = time.monotonic()
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > self.longest_silence:
                    break
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: RV = end.value
            return answer
        # If it only takes too long, for instance for a lock, it would go on with that for nobody.
        # Before version 17, libpq would wait for ever for the cancellation.
        if psycopg.capabilities.has_cancel_safe():
            with suppress(psycopg.Error):
                self.cancel_safe(timeout=CANCEL_SECONDS)
        self.close()  # What comes yet would be taken for the answer to another question.
        raise psycopg.OperationalError(f"no answer for {self.longest_silence:.0f} s")

    @contextmanager
    def answering_within(self, seconds: float) -> Iterator[None]:
        """Let it be given up sooner, while what is asked takes a server no time."""
        before, self.longest_silence = self.longest_silence, min(seconds, self.longest_silence)
        try:
            yield
        finally:
            self.longest_silence = before


def connecting(url: URL, options: Mapping[str, Any]) -> Callable[[], ImpatientConnection]:
    """What makes a connection, for SQLAlchemy's `creator`.

    Args:
        options: of the connection, before those of the URL.
    """
    positional, named = url.get_dialect()().create_connect_args(url)
    return lambda: ImpatientConnection.connect(*positional, **{**named, **options})
