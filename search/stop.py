"""Stopping a worker from outside, at a moment when nothing is lost."""

import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 10.0
"""By default: a running epoch that ends within this time is finished, else abandoned."""

STOPPED_EXIT_CODES = (129, 130, 143)
"""Of a process that SIGHUP, SIGINT or SIGTERM has stopped: 128 and the signal's number."""


@contextmanager
def signals_as_before() -> Iterator[None]:
    """Code that handles signals in its own way; whoever called it then has them back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_terminal() -> None:
    """After SIGHUP: the terminal is gone, and to write to it, not to a file, would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            os.dup2(nowhere, stream.fileno())


class Stopped(BaseException):
    """Raised in the middle of an epoch that is not to be finished."""


class StopRequest:
    """Whether SIGINT (Ctrl-C), SIGTERM or a terminal that closes has asked this process to stop.

    The first signal lets the running epoch end within `grace_seconds`; after that, or at a second
    signal, `Stopped` is raised, but only inside `interruptible()`: never while the storage is
    being written.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self.signal: signal.Signals | None = None
        self.is_over = False
        """Whether the time is up in which the running epoch may end."""
        self._interruptible = False

    def install(self) -> None:
        """Handle the signals of this process; to be called in its main thread."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, self._handle)
        # nohup ignores it.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)

    def disarm(self) -> None:
        """Cancel the end of the grace period: it must not kill a process that is leaving."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 128 + self.signal if self.signal is not None else 0

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
            if self.signal is not None:
                return  # A terminal that is closed may say so twice; nobody has asked again.
        if self.signal is None:
            self.signal = signal.Signals(number)
            if self._grace_seconds > 0:
                signal.setitimer(signal.ITIMER_REAL, self._grace_seconds)
                return
        self.is_over = True
        if self._interruptible:
            raise Stopped

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Code in which `Stopped` may be raised at any point."""
        self._interruptible = True
        try:
            if self.is_over:
                raise Stopped
            yield
        finally:
            self._interruptible = False
