import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from search.broken import BROKEN_AT_FIRST_EXIT_CODE, BROKEN_EXIT_CODE
from search.gpus import visible_gpus
from search.launch import (
    Interruptions,
    RunningWorker,
    Slot,
    WorkerProcess,
    plan_slots,
    start_worker,
    supervise,
)
from studies.ownership import LAUNCH_VARIABLE
from studies.patience import StorageLost
from studies.storage import open_storage
from tests.system.processes import wait_for


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    count, visible = request.param
    monkeypatch.setenv("PATH", str(tmp_path))  # Where there is no nvidia-smi.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(request.param)))


@pytest.mark.parametrize("gpus", [(0, None)], indirect=True)
@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(2, None, ["1", "1"]), (8, None, ["2"] * 4), (8, 2, ["4", "4"]), (2, 3, ["1"] * 3)],
    indirect=["cores"],
)
@pytest.mark.usefixtures("gpus", "cores")
def test_workers_on_a_cpu_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, threads: list[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    slots = plan_slots(workers, workers_per_gpu=1)
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == threads
    assert {slot.device for slot in slots} == {"cpu"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    slots = plan_slots(workers, workers_per_gpu=1)
    assert {slot.environment["OMP_NUM_THREADS"] for slot in slots} == {"3"}, "if the user says so"


@pytest.mark.parametrize(
    ("gpus", "workers", "workers_per_gpu", "devices"),
    [
        ((2, None), None, 1, ["0", "1"]),
        ((2, None), None, 2, ["0", "1", "0", "1"]),
        ((4, None), 2, 1, ["0", "1"]),
        ((2, "3,5"), None, 1, ["3", "5"]),
        ((1, "GPU-8932f937"), None, 1, ["GPU-8932f937"]),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_each_worker_sees_one_gpu(
    workers: int | None, workers_per_gpu: int, devices: list[str]
) -> None:
    slots = plan_slots(workers, workers_per_gpu)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == devices
    assert {slot.environment["CUDA_DEVICE_ORDER"] for slot in slots} == {"PCI_BUS_ID"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpus_of_this_machine_are_found() -> None:
    assert len(visible_gpus()) == torch.cuda.device_count() > 0


def running(*scripts: str) -> tuple[list[Slot], Callable[[Slot], WorkerProcess]]:
    """A slot for each shell script, and what runs it there in place of a worker."""
    slots = [Slot(index, "cpu", {}) for index in range(1, len(scripts) + 1)]

    def start(slot: Slot) -> WorkerProcess:
        process = subprocess.Popen(["sh", "-c", scripts[slot.index - 1]])
        return WorkerProcess(slot, process, "", None)

    return slots, start


def taken_back(worker: RunningWorker, reason: str) -> bool:
    """Where there is no study."""
    return False


def watched(scripts: tuple[str, ...]) -> list[str]:
    slots, start = running(*scripts)
    return supervise(slots, start, taken_back, Interruptions(), lambda *_: None)


def test_when_all_workers_have_lost_the_storage_the_launcher_has_too() -> None:
    with pytest.raises(StorageLost):
        watched(("exit 75", "exit 75"))
    assert watched(("exit 75", "exit 0")) == ["worker 1: exited with code 75"]
    assert len(watched(("exit 75", "exit 2"))) == 2


@pytest.mark.parametrize(
    ("ends", "had_trial", "starts"),
    [("kill -9 $$", True, 8), ("exit 143", False, 8), (f"exit {BROKEN_EXIT_CODE}", False, 8)],
)
def test_who_dies_in_a_trial_or_is_told_to_stop_or_breaks_at_work_is_not_given_up(
    ends: str, had_trial: bool, starts: int, tmp_path: Path
) -> None:
    script = f"echo >> {tmp_path}/starts; test $(wc -l < {tmp_path}/starts) -lt {starts} || exit 0"
    slots, start = running(f"{script}; {ends}")
    assert supervise(slots, start, lambda *_: had_trial, Interruptions(), lambda *_: None) == []
    assert len((tmp_path / "starts").read_text().splitlines()) == starts


def test_a_slot_whose_workers_are_broken_before_their_first_epoch_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However long that takes: a broken GPU would cost one trial after the other."""
    monkeypatch.setattr("search.launch.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("search.launch.SOON_SECONDS", 0.0)
    script = f"echo >> {tmp_path}/starts; test $(wc -l < {tmp_path}/starts) -lt 8 || exit 0"
    slots, start = running(f"{script}; exit {BROKEN_AT_FIRST_EXIT_CODE}")
    (trouble,) = supervise(slots, start, taken_back, Interruptions(), lambda *_: None, 6)
    assert trouble == "worker 1: exited with code 71 (6 times before its first epoch; given up)"
    assert len((tmp_path / "starts").read_text().splitlines()) == 6


@pytest.mark.parametrize("when", ["while they run", "at a start"])
def test_an_error_of_the_launcher_leaves_no_worker_behind(when: str, tmp_path: Path) -> None:
    """Nobody would look after them. Each is asked to stop, and has the time to."""
    ready = [tmp_path / "1", tmp_path / "2"]
    stopped = "trap 'kill $!; sleep 0.3; exit 143' TERM"
    slots, start = running(*(f"{stopped}; > {file}; sleep 60 & wait" for file in ready), "exit 0")
    workers: list[WorkerProcess] = []

    def all_ready() -> bool:
        return all(file.exists() for file in ready)

    def start_or_fail(slot: Slot) -> WorkerProcess:
        if when == "at a start" and slot.index == 3:
            wait_for(all_ready)
            raise OSError("no more processes")
        workers.append(start(slot))
        return workers[-1]

    def refresh(*_: object) -> None:
        wait_for(all_ready)
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match=r"no more processes|the terminal is gone"):
        supervise(slots, start_or_fail, taken_back, Interruptions(), refresh)
    assert [worker.process.returncode for worker in workers[:2]] == [143, 143]


def test_who_stays_after_an_error_of_the_launcher_is_killed_by_a_second_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("search.launch.KILL_SECONDS", 0.2)
    ready = tmp_path / "ready"
    slots, start = running(f"trap '' TERM INT; > {ready}; while :; do sleep 0.1; done")
    interruptions = Interruptions()
    workers: list[WorkerProcess] = []

    def kept(slot: Slot) -> WorkerProcess:
        workers.append(start(slot))
        return workers[-1]

    def refresh(*_: object) -> None:
        wait_for(ready.exists)
        interruptions.received += [signal.SIGINT, signal.SIGINT]
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        supervise(slots, kept, taken_back, interruptions, refresh)
    assert workers[0].process.returncode == -signal.SIGKILL


def test_a_terminal_that_closes_asks_once_however_often_it_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two would mean that workers are not to hand their trials back in order."""
    monkeypatch.setattr("search.launch.leave_terminal", lambda: None)
    interruptions = Interruptions()
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
        interruptions._handle(number, None)
    assert interruptions.received == [signal.SIGHUP, signal.SIGTERM]
    assert interruptions.exit_code == 129


def test_two_machines_of_one_name_take_back_only_their_own_workers_trials(
    tmp_path: Path, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarted container has the same name, and its processes the same numbers as before."""
    started = []
    for number in (1, 2):
        log = tmp_path / f"{number}.log"
        say = ("sh", "-c", f"echo ${LAUNCH_VARIABLE}")
        worker = start_worker(Slot(1, "cpu", {}), [], {}, log, say)
        worker.process.wait()
        started.append((worker, log.read_text().strip()))
    monkeypatch.setattr("os.getpid", lambda: started[0][0].process.pid)
    optuna.create_study(study_name="a", storage=open_storage(storage_url, create=True))
    trials = []
    for _, launch in started:
        monkeypatch.setenv(LAUNCH_VARIABLE, launch)
        storage = open_storage(storage_url)
        trial = storage.create(1, limit=None)
        assert trial is not None
        trials.append(trial)
    assert storage.take_back(1, started[0][0].name, 3, "killed")
    assert not storage.take_back(1, started[0][0].name, 3, "killed"), "it has none any more"
    states = [storage.get_trial(trial).state for trial in trials]
    assert states == [TrialState.WAITING, TrialState.RUNNING]
