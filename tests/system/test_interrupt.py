"""Ctrl-C and SIGTERM, on the real command in a real terminal and without one."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from studies.results import WORKER
from studies.storage import open_storage
from studies.study import open_study
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
