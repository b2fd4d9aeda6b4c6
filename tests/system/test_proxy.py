"""A search whose workers know no database, only a proxy: real processes, real PostgreSQL."""

import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Postgres
from tests.system.processes import running, trained, wait_for

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]
Status = Callable[..., dict[str, Any]]

SECRET = "8c1f60b2d94e7a35"

# Each epoch leaves a line in a file: which were trained, by whom.
OBJECTIVES = """
import os
import time
from model.trial import EpochResult

def train(parameters, context):
    before = context.resume["epoch"] if context.resume else 0
    for epoch in range(before + 1, context.epochs + 1):
        time.sleep(0.25)
        with open("epochs", "a") as file:
            file.write(f"{parameters['x']} {epoch} {os.getpid()}\\n")
        yield EpochResult(epoch, epoch / 100, 1.0, 100.0, {}, {"epoch": epoch})
"""

STUDY = """
name = "own"
[trial]
epochs = 16
objective = "objectives:train"
[space]
x = [1, 2]
[sampler]
name = "grid"
[pruner]
name = "none"
[budget]
trials = 2
"""


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split()[0]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_search_survives_a_killed_worker_and_a_new_proxy(
    hpsearch: Hpsearch,
    status: Status,
    write_own_study: Callable[[str, str], Path],
    tmp_path: Path,
    postgres_url: str,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = write_own_study(OBJECTIVES, STUDY)
    url = f"grpc://127.0.0.1:{port}"
    monkeypatch.setenv("HPSEARCH_PROXY_TOKEN", SECRET)
    served = ("storage-proxy", "--port", port)
    environment = {"HPSEARCH_STORAGE": url}
    with running(tmp_path, *served, HPSEARCH_STORAGE=postgres_url) as first:
        assert address(first) == url
        with running(tmp_path, "run", study, "--workers", 2, **environment) as search:
            wait_for(lambda: len(trained(tmp_path)) >= 3)
            os.kill(trained(tmp_path)[-1][2], signal.SIGKILL)
            wait_for(lambda: len(trained(tmp_path)) >= 7)
            first.terminate()
            assert first.wait(20) == 143
            before = len(trained(tmp_path))
            wait_for(lambda: len(trained(tmp_path)) >= before + 2)  # Training goes on meanwhile.
            with running(tmp_path, *served, HPSEARCH_STORAGE=postgres_url) as second:
                assert address(second) == url
                output, _ = search.communicate(timeout=120)
                assert search.returncode == 0, output
                found = status("own", url)
                assert hpsearch("export", "own", "--output", "best", HPSEARCH_STORAGE=url).stdout
                with running(tmp_path, "dashboard", "--port", 0, **environment) as dashboard:
                    page = f"{address(dashboard).removesuffix('/dashboard')}/api/studies"
                    assert b'"own"' in urllib.request.urlopen(page).read()
                second.send_signal(signal.SIGINT)
                said, _ = second.communicate(timeout=20)
                assert (second.returncode, said) == (130, "")
    assert output.count("it is started again") == 1
    assert (found["complete"], found["failed"], found["running"]) == (2, 0, 0)
    assert all(trial["accuracies"] == [0.01 * e for e in range(1, 17)] for trial in found["top"])
    assert SECRET not in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 needs --token-file, or --no-token"),
        (("--host", "192.0.2.1", "--no-token"), "192.0.2.1:13000: taken, or not of this machine"),
        (("--token-file", "none"), "token file none: cannot be read"),
        (("--storage", "grpc://a:1"), "//user@host/database\n"),  # And not another proxy.
    ],
)
def test_a_proxy_that_must_not_start_says_why(
    hpsearch: Hpsearch, arguments: tuple[str, ...], said: str
) -> None:
    result = hpsearch("storage-proxy", *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_a_proxy_may_start_before_its_database_does(tmp_path: Path, stoppable: Postgres) -> None:
    stoppable.stop()
    served = ("storage-proxy", "--port", 0)
    with running(tmp_path, *served, HPSEARCH_STORAGE=stoppable.url) as proxy:
        assert proxy.stdout is not None
        assert "the storage does not answer (" in proxy.stdout.readline()
        stoppable.start()
        assert "the storage answers again" in proxy.stdout.readline()
        assert address(proxy).startswith("grpc://127.0.0.1:")
        proxy.terminate()
        assert proxy.wait(20) == 143


def test_a_worker_with_another_token_ends_at_once(
    hpsearch: Hpsearch, tmp_path: Path, port: int
) -> None:
    database = f"sqlite:///{tmp_path / 'a.db'}"
    served = ("storage-proxy", "--port", port, "--storage", database)
    with running(tmp_path, *served, HPSEARCH_PROXY_TOKEN=SECRET) as proxy:
        url = address(proxy)
        result = hpsearch("worker", "quickstart", "--storage", url, HPSEARCH_PROXY_TOKEN="other")
    assert result.returncode == 2
    assert result.stderr == (
        f"hpsearch: storage {url}: cannot be opened: the proxy wants a token, and not this one\n"
    )
