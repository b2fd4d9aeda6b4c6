"""Asking what may not be answered soon, without waiting for it."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """What a function has returned last. It is called in a thread, one call after the other.

    Args:
        first: what is said until it has returned for the first time.
    """

    def __init__(self, function: Callable[[], T], first: T) -> None:
        self._function, self._latest = function, first
        self._running: Future[T] | None = None

    def latest(self, seconds: float) -> T:
        """Call the function, unless it still runs, and wait for it for so many seconds at most.

        Raises:
            Exception: what the function has raised.
        """
        if self._running is None:
            self._running = Future()
            # A daemon: this process may end before the answer comes.
            Thread(target=self._call, args=(self._running,), daemon=True).start()
        wait([self._running], seconds)
        if self._running.done():
            ended, self._running = self._running, None
            self._latest = ended.result()
        return self._latest

    def _call(self, running: "Future[T]") -> None:
        try:
            running.set_result(self._function())
        except BaseException as error:  # noqa: BLE001
            running.set_exception(error)
