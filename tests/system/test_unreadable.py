"""Rows that nobody can read, in a study that is searched by real processes."""

import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search.prepare import create_from_file
from studies.config import load_study_file
from studies.database import DatabaseStorage
from studies.proxy import start
from studies.storage import open_database
from studies.study import OpenedStudy
from tests.system.processes import running, trained, wait_for
from tests.system.terminal import Terminal

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

OBJECTIVE = """
import os
import time
from pathlib import Path
from model.trial import EpochResult

def train(parameters, context):
    with open("epochs", "a") as file:
        file.write(f"0 1 {os.getpid()}\\n")
    while Path("wait").exists():
        time.sleep(0.05)
    yield EpochResult(1, parameters["x"], 1.0, 100.0, {})
"""
STUDY = """
name = "own"
trial = { objective = "objectives:train", epochs = 1 }
space = { x = { low = 0.1, high = 0.9 } }
sampler = { name = "gp", startup_trials = 1 }
budget = { trials = 4 }
"""
BROKEN = "UPDATE trial_system_attributes SET value_json = '{{' WHERE trial_id = {}"


@pytest.fixture
def study_file(write_own_study: Callable[[str, str], Path]) -> Path:
    return write_own_study(OBJECTIVE, STUDY)


def prepared(url: str, study_file: Path, root: Path) -> tuple[OpenedStudy, DatabaseStorage]:
    storage = open_database(url, create=True)
    config = load_study_file(str(study_file))
    return create_from_file(storage, config, "own", root / "var").opened, storage


def add_broken(opened: OpenedStudy, storage: DatabaseStorage, state: TrialState) -> int:
    """A trial that cannot be read; RUNNING, it is that of a worker that is no more."""
    x = optuna.distributions.FloatDistribution(0.1, 0.9)
    given = optuna.trial.create_trial(
        state=TrialState.COMPLETE if state == TrialState.COMPLETE else TrialState.WAITING,
        value=0.5 if state == TrialState.COMPLETE else None,
        params={"x": 0.5} if state == TrialState.COMPLETE else {},
        distributions={"x": x} if state == TrialState.COMPLETE else {},
        system_attrs={"fixed_params": {"x": 0.5}},
    )
    trial_id = storage.create_new_trial(opened.study._study_id, given)
    if state == TrialState.RUNNING:
        assert storage.take(trial_id)
    execute(storage, BROKEN.format(trial_id))
    return trial_id


def execute(storage: DatabaseStorage, statement: str) -> None:
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def outcomes(opened: OpenedStudy) -> list[str]:
    return [
        f"{item.state} {(item.reason or '').partition(':')[0]}".strip() for item in opened.records
    ]


FAILED = "failed what is stored of it cannot be read"


def test_a_lone_worker_whose_sampler_reads_all_trials_gets_past_those_that_cannot_be_read(
    study_file: Path, tmp_path: Path, storage_url: str
) -> None:
    """On PostgreSQL, it speaks to a proxy."""
    opened, storage = prepared(storage_url, study_file, tmp_path)
    add_broken(opened, storage, TrialState.COMPLETE)
    lost = add_broken(opened, storage, TrialState.RUNNING)
    add_broken(opened, storage, TrialState.WAITING)
    with ExitStack() as stack:
        url = storage_url
        if "postgresql" in url:
            server, port = start(open_database(url), "127.0.0.1", 0, secret=None)
            stack.callback(server.stop, None)
            url = f"grpc://127.0.0.1:{port}"
        worker = stack.enter_context(running(tmp_path, "worker", study_file, HPSEARCH_STORAGE=url))
        both = [FAILED, "running what is stored of it cannot be read", FAILED]
        wait_for(
            lambda: worker.poll() is not None or outcomes(opened) == [*both, *["complete"] * 2]
        )
        assert worker.poll() is None, "it waits for the one that runs: of the budget it has a place"
        # As each worker does when it has seen it without a heartbeat for long.
        assert storage.take_away(lost, storage.owner(lost), 3, "silence")
        output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, output
    assert "Traceback" not in output
    assert "is given up: what is stored of it cannot be read: JSONDecodeError" in output
    assert outcomes(opened) == [FAILED] * 3 + ["complete"] * 3


def test_a_run_comes_to_its_workers_which_clear_what_cannot_be_read(
    hpsearch: Hpsearch, study_file: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    opened, storage = prepared(url, study_file, tmp_path)
    add_broken(opened, storage, TrialState.WAITING)
    settings = ("--workers", 1, "--trials", 1)
    result = hpsearch("run", study_file, *settings, HPSEARCH_STORAGE=url)
    assert result.returncode == 0, result.stderr
    assert "1 trial finished (1 complete, 0 pruned, 0 diverged), 1 failed" in result.stdout
    assert outcomes(opened) == [FAILED, "complete"]


def test_the_live_view_goes_on_when_a_trial_or_the_whole_study_cannot_be_read(
    study_file: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    (tmp_path / "wait").touch()
    options = ("--workers", 1, "--trials", 2, "--storage", url)
    terminal = Terminal("run", study_file, *options, cwd=tmp_path)
    try:
        wait_for(lambda: trained(tmp_path))
        terminal.read_until("running")
        opened, storage = prepared(url, study_file, tmp_path)
        add_broken(opened, storage, TrialState.WAITING)
        execute(storage, "UPDATE trials SET state = 'EVIL' WHERE state = 'RUNNING'")
        # Several looks at it, of which one would be enough.
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            terminal._read()
        execute(storage, "UPDATE trials SET state = 'RUNNING' WHERE state = 'EVIL'")
        (tmp_path / "wait").unlink()
        assert terminal.exit_code() == 0, terminal.output[-3000:]
    finally:
        terminal.close()
    assert "starts again" not in terminal.output
    assert outcomes(opened) == ["complete", FAILED, "complete"]
