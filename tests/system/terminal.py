"""The real command in a real terminal."""

import contextlib
import os
import pty
import re
import select
import signal
import time
from pathlib import Path

from tests.forked import HPSEARCH


class Terminal:
    """A command in a terminal of its own, as a person would have it."""

    def __init__(self, *arguments: object, cwd: Path) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.environ.update(COLUMNS="120", LINES="40", TERM="xterm-256color")
            os.execv(HPSEARCH, ["hpsearch", *map(str, arguments)])
        self.output = ""

    def read_until(self, pattern: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.output):
            assert time.monotonic() < deadline, f"no {pattern!r} in: {self.output[-3000:]}"
            self._read()

    def _read(self) -> bool:
        if not select.select([self.descriptor], [], [], 0.2)[0]:
            return True
        try:
            chunk = os.read(self.descriptor, 65536)
        except OSError:  # Linux says so when the other side has been closed.
            return False
        self.output += chunk.decode(errors="replace")
        return bool(chunk)

    def press_ctrl_c(self) -> None:
        os.write(self.descriptor, b"\x03")

    def exit_code(self, seconds: float = 60) -> int:
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, self.output[-3000:]
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
