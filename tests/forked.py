"""Processes of our own code, forked from one that has imported what takes seconds."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
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


def run_hpsearch(
    directory: Path, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, without a terminal.

    What it starts itself, such as workers, are new processes as ever.
    """
    words = [HPSEARCH, *map(str, arguments)]
    variables = {**os.environ, "COLUMNS": "200", **environment}
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = PROCESSES.Process(
            target=_hpsearch, args=(directory, words, variables, IMPORTED_FROM, stdout, stderr)
        )
        process.start()
        process.join(LONGEST_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, LONGEST_SECONDS, stdout.read_bytes())
        return subprocess.CompletedProcess(
            words, process.exitcode, stdout.read_text(), stderr.read_text()
        )


def _hpsearch(
    directory: Path,
    words: list[str],
    variables: dict[str, str],
    imported_from: list[str],
    stdout: Path,
    stderr: Path,
) -> None:
    for descriptor, path in ((0, Path(os.devnull)), (1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
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
