"""Processes of our own code, forked from one that has imported what takes seconds."""

import multiprocessing
import os
import selectors
import subprocess
import sys
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from search.cli import main

HPSEARCH = str(Path(sys.executable).parent / "hpsearch")
LONGEST_SECONDS = 240

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [__name__, "model.train", "search.run", "search.worker", "torch._dynamo"]
)
# Tests add to it, of which a new process would know nothing.
IMPORTED_FROM = list(sys.path)
READ_AT_THE_START = frozenset({"PYTHONPATH", "PYTHONIOENCODING", "OMP_NUM_THREADS"})


def start_forkserver() -> None:
    """Before a test changes what it would inherit."""
    forkserver.ensure_running()


def run_hpsearch(
    directory: Path, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command's function in a folder, without a terminal, in a process of its own.

    What it starts itself, such as workers, are new processes as ever, and waited for if they have
    its output. It differs from a new process in what happens before and after the function: it has
    the forked one's hash seed, takes no notice of `READ_AT_THE_START`, and ends without finalising
    Python. What depends on these is tested with `HPSEARCH`.
    """
    assert not environment.keys() & READ_AT_THE_START
    words = [HPSEARCH, *map(str, arguments)]
    variables = {**os.environ, "COLUMNS": "200", **environment}
    (stdout, to_stdout), (stderr, to_stderr) = (PROCESSES.Pipe(duplex=False) for _ in range(2))
    process = PROCESSES.Process(
        target=_hpsearch, args=(directory, words, variables, IMPORTED_FROM, to_stdout, to_stderr)
    )
    process.start()
    try:
        for end in (to_stdout, to_stderr):
            end.close()
        output = _read(stdout, stderr)
        process.join(LONGEST_SECONDS)
    finally:
        if process.is_alive():
            process.kill()
        process.join()
    return subprocess.CompletedProcess(words, process.exitcode or 0, *output)


def _read(*ends: Connection) -> list[str]:
    """What comes out of pipes until nobody has their other ends."""
    found = {end.fileno(): b"" for end in ends}
    latest = time.monotonic() + LONGEST_SECONDS
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(max(latest - time.monotonic(), 0)):
                piece = os.read(key.fd, 1 << 16)
                found[key.fd] += piece
                if not piece:
                    selector.unregister(key.fileobj)
            assert time.monotonic() < latest, found
    return [content.decode() for content in found.values()]


def _hpsearch(
    directory: Path,
    words: list[str],
    variables: dict[str, str],
    imported_from: list[str],
    stdout: Connection,
    stderr: Connection,
) -> None:
    for descriptor, end in ((1, stdout), (2, stderr)):
        os.dup2(end.fileno(), descriptor)
        end.close()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:] = imported_from
    sys.argv = words
    try:
        main()
    except Exception:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
