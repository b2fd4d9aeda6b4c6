"""The real command in processes that outlive a call, and what their trials leave behind."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.forked import HPSEARCH

# Python imports a module of this name when it starts.
IMPATIENT = """
import studies.deadline
import studies.storage

studies.deadline.ImpatientConnection.longest_silence = 2
studies.deadline.CANCEL_SECONDS = 1
studies.storage.CONNECT_SECONDS = 2
"""


def impatient(directory: Path) -> str:
    """The PYTHONPATH of processes that wait for PostgreSQL's answers for less time."""
    folder = directory / "impatient"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(IMPATIENT)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def running(
    directory: Path, *arguments: object, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [HPSEARCH, *map(str, arguments)],
        cwd=directory,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def trained(directory: Path) -> list[tuple[int, int, int]]:
    """The epochs so far, of objectives that leave a line of each: x, epoch, process."""
    file = directory / "epochs"
    lines = file.read_text().splitlines() if file.exists() else []
    return [tuple(map(int, line.split())) for line in lines]  # type: ignore[misc]


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
