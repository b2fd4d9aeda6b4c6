"""What happens to workers in the night, with real processes."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from search.prepare import create_from_file
from studies.config import load_study_file
from studies.proxy import start
from studies.results import LOSSES, OWNER
from studies.storage import CONNECT_SECONDS, open_database, open_storage
from studies.study import VERSIONS, open_study
from tests.conftest import Postgres, forget_heartbeats
from tests.system.processes import impatient, running, trained, wait_for
from tests.system.terminal import Terminal

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]
Status = Callable[..., dict[str, Any]]
Outage = Callable[[Postgres], AbstractContextManager[None]]

# Each epoch leaves a line in a file: which were trained, by whom.
OBJECTIVES = """
import os
import time
from pathlib import Path
from model.trial import EpochResult

if os.environ.get("DIES_AT_START") and "worker" in __import__("sys").argv:
    os._exit(3)

BROKEN = False

def compute(x, epoch):
    global BROKEN
    time.sleep(0.25)
    if x == 13 and epoch == 2:
        os.kill(os.getpid(), 9)
    once = x == 14 and epoch == 3 and not Path("was-broken").exists()
    if once:
        Path("was-broken").touch()
    # As with CUDA: from the first such error on, each call fails in this process.
    BROKEN = BROKEN or once or (x == 15 and epoch == 2)
    if BROKEN:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nCUDA kernel ...")

def train(parameters, context):
    before = context.resume["epoch"] if context.resume else 0
    for epoch in range(before + 1, context.epochs + 1):
        compute(parameters["x"], epoch)
        with open("epochs", "a") as file:
            file.write(f"{parameters['x']} {epoch} {os.getpid()}\\n")
        yield EpochResult(epoch, epoch / 100, 1.0, 100.0, {}, {"epoch": epoch})
"""

STUDY = """
name = "own"
[trial]
epochs = 6
objective = "objectives:train"
[space]
x = [1, 2, 3, 4]
[sampler]
name = "grid"
[pruner]
name = "none"
[budget]
trials = 4
"""

LONG = 30  # epochs


@pytest.fixture
def study(write_own_study: Callable[[str, str], Path]) -> Path:
    return write_own_study(OBJECTIVES, STUDY)


@pytest.fixture
def long_study(study: Path) -> Path:
    """Of two trials, neither of which ends while a database is stopped."""
    text = study.read_text().replace("[1, 2, 3, 4]", "[1, 2]").replace("trials = 4", "trials = 2")
    study.write_text(text.replace("epochs = 6", f"epochs = {LONG}"))
    return study


def pause(process: subprocess.Popen[str], url: str) -> None:
    """Not in the middle of a transaction, in which it would keep SQLite's lock."""
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": 0} if "sqlite" in url else {})

    def is_paused() -> bool:
        process.send_signal(signal.SIGSTOP)
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE" if "sqlite" in url else "SELECT 1")
        except sqlalchemy.exc.OperationalError:
            process.send_signal(signal.SIGCONT)
            return False
        return True

    wait_for(is_paused)
    engine.dispose()


# Python imports a module of this name when it starts.
FAST_CLOCK = """
import datetime
import time

AHEAD = 600
now = time.time
time.time = lambda: now() + AHEAD

class Kind(type):
    def __instancecheck__(cls, value):
        return isinstance(value, real)

real = datetime.datetime

class Ahead(real, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(seconds=AHEAD)

    @classmethod
    def utcnow(cls):
        return real.utcnow() + datetime.timedelta(seconds=AHEAD)

datetime.datetime = Ahead
"""


def test_a_machine_whose_clock_is_minutes_ahead_takes_nobody_for_dead(
    long_study: Path, tmp_path: Path, postgres_url: str
) -> None:
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "sitecustomize.py").write_text(FAST_CLOCK)
    # Longer than a heartbeat and the time for which a worker is suspected.
    longer = 4 * LONG
    long_study.write_text(long_study.read_text().replace(f"= {LONG}", f"= {longer}"))
    worker = ("worker", long_study)
    with running(tmp_path, *worker, HPSEARCH_STORAGE=postgres_url) as punctual:
        wait_for(lambda: trained(tmp_path))
        fast = {"HPSEARCH_STORAGE": postgres_url, "PYTHONPATH": str(tmp_path / "fast")}
        with running(tmp_path, *worker, **fast) as ahead:
            outputs = [process.communicate(timeout=120)[0] for process in (punctual, ahead)]
    assert [punctual.returncode, ahead.returncode] == [0, 0], outputs
    epochs = [line[:2] for line in trained(tmp_path)]
    assert sorted(epochs) == [(x, epoch) for x in (1, 2) for epoch in range(1, longer + 1)]
    trials = open_study("own", open_storage(postgres_url)).study.get_trials()
    starts = [trial.datetime_start for trial in trials if trial.datetime_start]
    assert (starts[1] - starts[0]).total_seconds() > 500, "its clock is ahead"
    assert all(LOSSES not in trial.user_attrs for trial in trials)


def test_workers_that_are_killed_are_replaced_and_lose_an_epoch_at_most(
    status: Status, study: Path, tmp_path: Path, storage_url: str
) -> None:
    with running(tmp_path, "run", study, "--workers", 2, HPSEARCH_STORAGE=storage_url) as search:
        killed: list[int] = []
        while len(killed) < 3:
            alive = wait_for(
                lambda: [line[2] for line in trained(tmp_path)[-3:] if line[2] not in killed]
            )
            os.kill(alive[-1], signal.SIGKILL)
            killed.append(alive[-1])
        output, _ = search.communicate(timeout=120)
    assert search.returncode == 0, output
    assert output.count("it is started again") == 3
    found = status("own", storage_url)
    assert (found["complete"], found["failed"], found["running"]) == (4, 0, 0)
    assert [trial["number"] for trial in found["top"]] == [0, 1, 2, 3]
    assert all(trial["accuracies"] == [e / 100 for e in range(1, 7)] for trial in found["top"])
    epochs = [line[:2] for line in trained(tmp_path)]
    assert set(epochs) == {(x, epoch) for x in range(1, 5) for epoch in range(1, 7)}
    assert len(epochs) <= len(set(epochs)) + 3, "at most one epoch a kill is trained twice"
    cut_short = [run for trial in found["top"] for run in trial["earlier_runs"]]
    assert cut_short
    assert all(run["lost"] for run in cut_short)
    assert {int(run["worker"].rpartition("-")[2]) for run in cut_short} <= set(killed)


@pytest.mark.parametrize(
    ("x", "most_losses", "last"),
    [
        (13, 2, "killed by SIGKILL"),
        (15, 1, "RuntimeError: CUDA error: an illegal memory access was encountered"),
    ],
    ids=["kills", "breaks each GPU"],
)
def test_a_trial_that_takes_each_worker_with_it_fails_and_the_study_goes_on(
    x: int,
    most_losses: int,
    last: str,
    hpsearch: Hpsearch,
    status: Status,
    study: Path,
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    settings = ("--set", f"space.x=[{x}, 1]", "--set", f"trial.max_retries={most_losses}")
    result = hpsearch("run", study, "--workers", 1, "--storage", url, *settings)
    assert result.returncode == 0, result.stderr
    found = status("own", url)
    assert (found["complete"], found["failed"], found["running"]) == (1, 1, 0)
    trials = open_study("own", open_storage(url)).study.trials
    (failed,) = [t for t in trials if t.state == optuna.trial.TrialState.FAIL]
    losses = most_losses + 1
    assert failed.user_attrs["error"] == (
        f"its worker was lost {losses} times without a new epoch in between; last: {last}"
    )
    assert failed.user_attrs[LOSSES] == losses
    assert failed.intermediate_values == {1: 0.01}


def test_a_worker_whose_gpu_fails_is_replaced_and_costs_no_trial_and_no_epoch(
    hpsearch: Hpsearch, status: Status, study: Path, tmp_path: Path, storage_url: str
) -> None:
    settings = ("--set", "space.x=[14, 1]")
    result = hpsearch("run", study, "--workers", 1, *settings, HPSEARCH_STORAGE=storage_url)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("hpsearch: ")]
    assert said == [
        "hpsearch: this worker is broken, and its trial is for another (RuntimeError: CUDA error: "
        "an illegal memory access was encountered)"
    ]
    assert result.stderr.count("worker 1: exited with code 70; it is started again") == 1
    found = status("own", storage_url)
    assert (found["complete"], found["failed"]) == (2, 0)
    assert all(trial["accuracies"] == [e / 100 for e in range(1, 7)] for trial in found["top"])
    assert len(trained(tmp_path)) == 2 * 6, "no epoch is trained twice"
    trials = open_study("own", open_storage(storage_url)).study.trials
    assert sorted(trial.user_attrs.get(LOSSES, 0) for trial in trials) == [0, 1]


def test_a_worker_that_dies_at_each_start_is_given_up_and_why(
    hpsearch: Hpsearch, study: Path
) -> None:
    started = time.monotonic()
    result = hpsearch("run", study, "--workers", 1, DIES_AT_START="yes")
    assert result.returncode == 1
    assert "worker 1: exited with code 3" in result.stdout
    assert "(5 times soon after its start; given up)" in result.stdout
    assert time.monotonic() - started > 1 + 2 + 4, "with ever longer pauses"


def test_a_trial_of_a_machine_that_is_gone_is_resumed_elsewhere(
    hpsearch: Hpsearch, status: Status, study: Path, tmp_path: Path, storage_url: str
) -> None:
    """Launcher and worker are killed at once; another machine finds the trial by its heartbeat."""
    with running(tmp_path, "run", study, "--workers", 1, HPSEARCH_STORAGE=storage_url) as launcher:
        wait_for(lambda: len(trained(tmp_path)) >= 3)
        launcher.kill()  # First: it would start another worker.
        os.kill(trained(tmp_path)[-1][2], signal.SIGKILL)
    storage = open_database(storage_url)
    opened = open_study("own", storage)
    (trial,) = opened.study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    forget_heartbeats(storage)
    result = hpsearch("worker", study, HPSEARCH_STORAGE=storage_url)
    assert result.returncode == 0, result.stderr
    assert f"trial {trial.number}: its worker was lost" in result.stderr
    assert re.search(rf"trial {trial.number}: goes on after epoch [23]", result.stderr)
    found = status("own", storage_url)
    assert (found["complete"], found["running"]) == (4, 0)


def test_a_trial_of_a_worker_that_is_asked_to_stop_is_resumed_at_once(
    long_study: Path, tmp_path: Path, storage_url: str
) -> None:
    """By one that waits; on PostgreSQL, it speaks to a proxy."""
    text = long_study.read_text().replace("[1, 2]", "[1]").replace(f"= {LONG}", "= 1000")
    long_study.write_text(text)
    with ExitStack() as stack:
        arguments = (tmp_path, "worker", long_study)
        first = stack.enter_context(running(*arguments, HPSEARCH_STORAGE=storage_url))
        wait_for(lambda: trained(tmp_path))
        url = storage_url
        if "postgresql" in url:
            server, port = start(open_database(url), "127.0.0.1", 0, secret=None)
            stack.callback(server.stop, None)
            url = f"grpc://127.0.0.1:{port}"
        second = stack.enter_context(running(*arguments, HPSEARCH_STORAGE=url))
        assert second.stdout
        assert any("joined study" in line for line in second.stdout)
        first.terminate()
        output, _ = first.communicate(timeout=30)
        assert first.returncode == 143, output
        assert re.search(r"trial 0: interrupted after epoch \d+, handed back", output)
        before = len(trained(tmp_path))
        wait_for(lambda: len(trained(tmp_path)) > before, seconds=10)
    epochs = [line[1] for line in trained(tmp_path)]
    assert epochs == list(range(1, len(epochs) + 1)), "none is trained twice"
    assert {line[2] for line in trained(tmp_path)} == {first.pid, second.pid}


def test_a_worker_that_was_paused_for_too_long_leaves_its_trial_to_its_new_owner(
    status: Status, study: Path, tmp_path: Path, storage_url: str
) -> None:
    environment = {"HPSEARCH_STORAGE": storage_url}
    with running(tmp_path, "worker", study, **environment) as paused:
        wait_for(lambda: len(trained(tmp_path)) >= 2)
        storage = open_database(storage_url)
        pause(paused, storage_url)
        opened = open_study("own", storage)
        (trial,) = opened.study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        forget_heartbeats(storage)
        with running(tmp_path, "worker", study, **environment) as other:
            lost = trained(tmp_path)[0][0]
            wait_for(lambda: (lost, other.pid) in [line[::2] for line in trained(tmp_path)])
            paused.send_signal(signal.SIGCONT)
            output, _ = other.communicate(timeout=120)
            assert other.returncode == 0, output
            said, _ = paused.communicate(timeout=120)
    assert paused.returncode == 0, said
    assert f"trial {trial.number}: this worker was taken for dead and has it no longer" in said
    assert "Traceback" not in said
    found = status("own", storage_url)
    assert (found["complete"], found["failed"], found["running"]) == (4, 0, 0)
    assert all(item["accuracies"] == [e / 100 for e in range(1, 7)] for item in found["top"])
    finished = storage.get_trial(trial._trial_id)
    assert finished.user_attrs[LOSSES] == 1
    assert finished.user_attrs[OWNER] != trial.user_attrs[OWNER]


def test_a_worker_with_another_study_file_or_version_is_refused_with_the_difference(
    hpsearch: Hpsearch, study: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    assert hpsearch("run", study, "--workers", 1, "--storage", url).returncode == 0
    text = study.read_text()
    study.write_text(text.replace("epochs = 6", "epochs = 7"))
    result = hpsearch("worker", study, "--storage", url)
    assert result.returncode == 2
    assert "trial.epochs: the study has 6, given is 7" in result.stderr
    opened = open_study("own", open_storage(url))
    stored = opened.study.user_attrs[VERSIONS]
    opened.study.set_user_attr(VERSIONS, {**stored, "hpsearch": "0.0.1"})
    result = hpsearch("worker", "own", "--storage", url)
    assert result.returncode == 2
    assert f"hpsearch 0.0.1 there, {stored['hpsearch']} here" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("outage", [Postgres.stopped, Postgres.hanging], ids=["stops", "hangs"])
def test_an_outage_of_the_database_costs_nothing(
    outage: Outage, status: Status, long_study: Path, tmp_path: Path, stoppable: Postgres
) -> None:
    """Training goes on meanwhile; what it gave is reported later, in order, and nothing twice."""
    environment = {"HPSEARCH_STORAGE": stoppable.url, "PYTHONPATH": impatient(tmp_path)}
    with running(tmp_path, "run", long_study, "--workers", 2, **environment) as search:
        wait_for(lambda: len(trained(tmp_path)) >= 3)
        with outage(stoppable):
            before = len(trained(tmp_path))
            wait_for(lambda: len(trained(tmp_path)) >= before + 8)
        output, _ = search.communicate(timeout=120)
    assert search.returncode == 0, output
    assert "the storage does not answer (" in output
    assert "the storage answers again, after" in output
    assert "Traceback" not in output
    found = status("own", stoppable.url)
    assert (found["complete"], found["failed"], found["running"]) == (2, 0, 0)
    assert all(item["accuracies"] == [e / 100 for e in range(1, LONG + 1)] for item in found["top"])
    assert len(trained(tmp_path)) == 2 * LONG, "no epoch is trained twice"
    trials = open_study("own", open_storage(stoppable.url)).study.trials
    assert not any(LOSSES in trial.user_attrs for trial in trials)


def test_past_the_patience_workers_and_launcher_stop_and_the_trial_can_be_resumed(
    hpsearch: Hpsearch, status: Status, long_study: Path, tmp_path: Path, stoppable: Postgres
) -> None:
    environment = {"HPSEARCH_STORAGE": stoppable.url}
    arguments = ("run", long_study, "--workers", 1, "--storage-patience", 2)
    with running(tmp_path, *arguments, **environment) as search:
        wait_for(lambda: len(trained(tmp_path)) >= 2)
        stoppable.stop()
        output, _ = search.communicate(timeout=60)
    assert search.returncode == 75, output
    assert "hpsearch: the storage has not answered for " in output
    assert "worker 1: exited with code 75" in output
    assert output.splitlines()[-1] == (
        "hpsearch: no worker has reached the storage, or the checkpoints of its trial, for too "
        "long; what was running is taken up again later"
    ), "and does not wait for it once more"
    stoppable.start()
    storage = open_database(stoppable.url)
    forget_heartbeats(storage)
    result = hpsearch("worker", long_study, **environment)
    assert result.returncode == 0, result.stderr
    assert re.search(r"trial \d: goes on after epoch \d+", result.stderr)
    found = status("own", stoppable.url)
    assert (found["complete"], found["running"]) == (2, 0)


@pytest.mark.parametrize("command", ["run", "confirm"])
def test_a_search_that_is_stopped_in_an_outage_says_how_to_go_on(
    command: str, long_study: Path, tmp_path: Path, stoppable: Postgres
) -> None:
    # What there is to confirm.
    config = load_study_file(str(long_study))
    found = create_from_file(open_storage(stoppable.url), config, "own", tmp_path / "var").opened
    x = optuna.distributions.CategoricalDistribution([1, 2])
    complete = optuna.create_trial(value=0.5, params={"x": 2}, distributions={"x": x})
    found.study.add_trial(complete)
    arguments = (command, long_study, "--workers", 1, "--grace", 1)
    with running(tmp_path, *arguments, HPSEARCH_STORAGE=stoppable.url) as search:
        wait_for(lambda: trained(tmp_path))
        stoppable.stop()
        if command == "confirm":
            # It does not ask the storage any more, but to take back what a dead worker had.
            os.kill(trained(tmp_path)[-1][2], signal.SIGKILL)
        search.terminate()
        output, _ = search.communicate(timeout=60)
    assert search.returncode == 143, output
    assert f"stopped; to continue: hpsearch {command}" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_worker_that_is_asked_to_stop_does_not_wait_for_the_database(
    long_study: Path, tmp_path: Path, stoppable: Postgres
) -> None:
    arguments = ("worker", long_study, "--grace", 1)
    with running(tmp_path, *arguments, HPSEARCH_STORAGE=stoppable.url) as worker:
        wait_for(lambda: len(trained(tmp_path)) >= 2)
        stoppable.stop()
        before = len(trained(tmp_path))
        wait_for(lambda: len(trained(tmp_path)) > before)
        worker.terminate()
        started = time.monotonic()
        output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 143, output
    # On a busy machine; the patience would be ten minutes.
    assert time.monotonic() - started < 30
    assert "a trial that was running is taken up again later" in output


def test_a_worker_may_start_before_its_database_does(
    long_study: Path, tmp_path: Path, stoppable: Postgres
) -> None:
    stoppable.stop()
    with running(tmp_path, "worker", long_study, HPSEARCH_STORAGE=stoppable.url) as worker:
        assert worker.stdout
        assert "the storage does not answer (" in worker.stdout.readline()
        stoppable.start()
        output, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0, output


def test_a_worker_whose_database_hangs_for_longer_than_its_patience_stops(
    long_study: Path, tmp_path: Path, stoppable: Postgres
) -> None:
    environment = {"HPSEARCH_STORAGE": stoppable.url, "PYTHONPATH": impatient(tmp_path)}
    arguments = ("worker", long_study, "--storage-patience", 1)
    with running(tmp_path, *arguments, **environment) as worker:
        wait_for(lambda: trained(tmp_path))
        with stoppable.hanging():
            output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 75, output
    assert "hpsearch: the storage has not answered for " in output
    assert "Traceback" not in output


def test_the_live_view_says_that_the_database_hangs_and_ctrl_c_stops_it_still(
    long_study: Path, tmp_path: Path, stoppable: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", impatient(tmp_path))
    # The longest that a trial takes is longer than all that is waited for here.
    long_study.write_text(long_study.read_text().replace(f"= {LONG}", "= 1000"))
    arguments = ("run", long_study, "--workers", 1, "--storage", stoppable.url)
    terminal = Terminal(*arguments, cwd=tmp_path)
    try:
        terminal.read_until(r"[1-9]/1000")
        with stoppable.hanging():
            terminal.read_until(
                r"the storage has not answered for \d+ s \((no answer for 2 s|connection timeout "
                r"expired)\); training goes on, and what it gives is kept"
            )
            before = len(trained(tmp_path))
            wait_for(lambda: len(trained(tmp_path)) > before + 4)
            terminal.press_ctrl_c()
            assert terminal.exit_code(40) == 130
    finally:
        terminal.close()
    assert "to continue: hpsearch run" in terminal.output


def test_ctrl_c_is_heeded_while_the_live_view_waits_for_a_database_that_hangs(
    long_study: Path, tmp_path: Path, stoppable: Postgres
) -> None:
    long_study.write_text(long_study.read_text().replace(f"= {LONG}", "= 1000"))
    arguments = ("run", long_study, "--workers", 1, "--storage", stoppable.url)
    terminal = Terminal(*arguments, cwd=tmp_path)
    try:
        terminal.read_until(r"[1-9]/1000")
        with stoppable.hanging():
            time.sleep(1.5)  # It is asked once a second.
            terminal.press_ctrl_c()
            # Before the database could have been given up.
            terminal.read_until("Ctrl-C again", seconds=2 * CONNECT_SECONDS - 2)
        assert terminal.exit_code() == 130
    finally:
        terminal.close()
