"""Ctrl-C and SIGTERM, on the real command in a real terminal and without one."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.prepare import create_from_file
from search.run import RunOptions, run_study
from studies.config import load_study_file
from studies.results import LOSSES, WORKER
from studies.storage import open_storage
from studies.study import exists, open_study
from tests.system.processes import running, wait_for
from tests.system.terminal import Terminal

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]
Status = Callable[..., dict[str, Any]]

OBJECTIVES = """
import time
from model.trial import EpochResult

def short(parameters, context):
    for epoch in range(1, context.epochs + 1):
        time.sleep(0.5)
        yield EpochResult(epoch, 0.01 * epoch, 1.0, 100.0, {})

def long(parameters, context):
    yield EpochResult(1, 0.1, 1.0, 100.0, {})
    time.sleep(600)
"""

STUDY = """
name = "own"
[trial]
epochs = 20
objective = "objectives:short"
[space]
x = { low = 0.0, high = 1.0 }
[sampler]
name = "random"
[pruner]
name = "none"
[budget]
trials = 2
"""


@pytest.fixture
def study(write_own_study: Callable[[str, str], Path]) -> Path:
    return write_own_study(OBJECTIVES, STUDY)


def test_ctrl_c_ends_after_the_epoch_and_the_same_command_continues(
    hpsearch: Hpsearch, status: Status, study: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    terminal = Terminal("run", study, "--workers", 2, "--storage", url, cwd=tmp_path)
    try:
        terminal.read_until(r"[1-9]/20")
        assert "Ctrl-C stops" in terminal.output
        terminal.press_ctrl_c()
        assert terminal.exit_code(20) == 130
    finally:
        terminal.close()
    assert "to continue: hpsearch run" in terminal.output
    stopped = status("own", url)
    assert (stopped["running"], stopped["failed"], stopped["waiting"]) == (0, 0, 2)

    result = hpsearch("run", study, "--workers", 2, "--storage", url)
    assert result.returncode == 0, result.stderr
    found = status("own", url)
    assert (found["complete"], found["waiting"], found["failed"]) == (2, 0, 0)
    assert sorted(trial["number"] for trial in found["top"]) == [0, 1]
    for trial in found["top"]:
        (run,) = trial["earlier_runs"]
        assert not run["lost"]
        assert run["epochs_before"] == 0 < run["epochs"]
        assert run["worker"] != trial["worker"]
        assert run["started"] < run["ended"] < trial["started"]


def test_ctrl_c_twice_abandons_a_long_epoch(status: Status, study: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    settings = ("--set", "trial.objective=objectives:long")
    terminal = Terminal("run", study, "--workers", 1, "--storage", url, *settings, cwd=tmp_path)
    try:
        terminal.read_until(r"\b1/20")
        terminal.press_ctrl_c()
        terminal.read_until("Ctrl-C again")
        started = time.monotonic()
        terminal.press_ctrl_c()
        assert terminal.exit_code(20) == 130
        assert time.monotonic() - started < 8
    finally:
        terminal.close()
    stopped = status("own", url)
    assert (stopped["running"], stopped["waiting"]) == (0, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_epoch_longer_than_the_grace_period_is_abandoned_and_its_trial_handed_back(
    number: signal.Signals,
    code: int,
    write_own_study: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    study = write_own_study(OBJECTIVES, STUDY.replace("objectives:short", "objectives:long"))
    with running(tmp_path, "worker", study, "--storage", url, "--grace", 1) as worker:
        wait_for(lambda: epochs_reported(tmp_path / "a.db"))
        started = time.monotonic()
        worker.send_signal(number)
        assert worker.wait(60) == code
    assert time.monotonic() - started < 60, "and not the ten minutes of the epoch"
    (trial,) = open_study("own", open_storage(url)).study.get_trials()
    assert trial.state == TrialState.WAITING
    assert trial.intermediate_values == {1: 0.1}
    assert LOSSES not in trial.user_attrs


def epochs_reported(database: Path) -> int:
    storage = open_storage(f"sqlite:///{database}", create=True)
    if not exists(storage, "own"):
        return 0
    trials = open_study("own", storage).study.get_trials()
    return sum(len(trial.intermediate_values) for trial in trials)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_export_after_a_search_is_stopped_at_once(
    number: signal.Signals,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    config = load_study_file(str(study))
    prepared = create_from_file(storage, config, "own", tmp_path / "var")
    for _ in range(2):
        prepared.opened.study.add_trial(optuna.create_trial(value=0.5))

    def export(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)
        pytest.fail("not stopped")

    monkeypatch.setattr("search.run.export_best", export)
    options = RunOptions("hpsearch run own", root=tmp_path / "var")
    assert run_study(config, storage, options) == 128 + number
    assert "stopped; to continue: hpsearch run own" in capsys.readouterr().out


def running_worker(url: str) -> int:
    """The process of the worker that runs a trial."""
    opened = open_study("own", open_storage(url))
    (trial,) = opened.study.get_trials(states=(TrialState.RUNNING,))
    return int(trial.user_attrs[WORKER].rsplit("-", 1)[1])


def test_a_terminal_that_is_closed_stops_the_search_and_leaves_no_worker(
    status: Status, study: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    terminal = Terminal("run", study, "--workers", 1, "--storage", url, cwd=tmp_path)
    try:
        terminal.read_until(r"[1-9]/20")
        process = running_worker(url)
        os.close(terminal.descriptor)
        os.waitpid(terminal.pid, 0)
    finally:
        terminal.close()
    assert not Path(f"/proc/{process}").exists()
    stopped = status("own", url)
    assert (stopped["running"], stopped["failed"]) == (0, 0)
    assert stopped["waiting"] <= 1, "none if it was just between two trials"
