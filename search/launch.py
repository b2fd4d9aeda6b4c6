"""Starting one worker process a slot, watching them, and stopping them."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import TrialState

from search.stop import STOPPED_EXIT_CODES
from studies.results import ERROR, WORKER

MOST_CPU_WORKERS = 4
"""By default; each takes about 0.7 GB of memory."""

REFRESH_SECONDS = 1.0
KILL_SECONDS = 5.0
"""How long after a second Ctrl-C a worker that is still there is killed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one worker."""

    index: int
    """From 1."""
    device: str
    """As it is shown: `cuda:0` or `cpu`."""
    environment: Mapping[str, str]
    """In addition to that of this process."""


def plan_slots(workers: int | None, workers_per_gpu: int) -> list[Slot]:
    """One slot a visible GPU (times `workers_per_gpu`), or slots that share the CPU's cores.

    Args:
        workers: on a machine without a GPU; None for one a core, `MOST_CPU_WORKERS` at most.
            With GPUs, the number of workers in all if given.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    gpus = visible_gpus()
    if not gpus:
        count = workers or min(cores, MOST_CPU_WORKERS)
        return [Slot(index, "cpu", _threads(cores, count)) for index in range(1, count + 1)]
    count = workers or len(gpus) * workers_per_gpu
    slots = []
    for index in range(1, count + 1):
        gpu = (index - 1) % len(gpus)
        environment = {**_threads(cores, count), "CUDA_VISIBLE_DEVICES": gpus[gpu]}
        slots.append(Slot(index, f"cuda:{gpu}", environment))
    return slots


def visible_gpus() -> list[str]:
    """The GPUs of this machine as `CUDA_VISIBLE_DEVICES` names them."""
    import torch  # Not needed by others who use this module, and takes seconds.

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(index) for index in range(count)]


def _threads(cores: int, workers: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(max(cores // workers, 1))}


def worker_name(process_id: int) -> str:
    """How a worker is called in the study, from whatever machine."""
    return f"{socket.gethostname()}-{process_id}"


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A running or ended worker."""

    slot: Slot
    process: subprocess.Popen[bytes]
    log: Path | None

    @property
    def name(self) -> str:
        """As the study knows it."""
        return worker_name(self.process.pid)


def start_worker(
    slot: Slot, arguments: Sequence[str], environment: Mapping[str, str], log: Path | None
) -> WorkerProcess:
    """Start `hpsearch worker` in a process of its own.

    Args:
        arguments: after `worker`. Secrets do not belong here: other users can read them.
        environment: in addition to that of this process and of the slot.
        log: where its log lines go, or None for the terminal of this process.
    """
    # A session of its own: Ctrl-C reaches this process alone, which decides what to tell them.
    # -P: a folder called data or model where the user stands must not hide ours.
    command = [sys.executable, "-P", "-m", "search.cli", "worker", *arguments]
    output = log.open("ab") if log else None
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, **slot.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        if output:
            output.close()
    return WorkerProcess(slot, process, log)


class Interruptions:
    """The signals to stop that this process has received, in order."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup, for one, has made this process ignore a signal for a reason.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    @property
    def exit_code(self) -> int:
        return 128 + self.received[0] if self.received else 0

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            # The terminal is gone; writing to it would be an error.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.dup2(nowhere, sys.stderr.fileno())
        self.received.append(signal.Signals(number))


def supervise(
    workers: Sequence[WorkerProcess],
    study: Study,
    storage: BaseStorage,
    interruptions: Interruptions,
    refresh: Callable[[int], None],
) -> list[str]:
    """Watch workers until all have ended, and pass interruptions on to them.

    Args:
        refresh: called about every `REFRESH_SECONDS` with the number of interruptions so far.

    Returns:
        For each worker that died or failed, a line that says so.
    """
    troubles: list[str] = []
    passed_on = 0
    last_passed_on = 0.0
    running = list(workers)
    while running:
        while passed_on < len(interruptions.received):
            received = interruptions.received[passed_on]
            # The terminal was closed: workers know of no terminal.
            number = signal.SIGTERM if received is signal.SIGHUP else received
            for worker in running:
                worker.process.send_signal(number)
            passed_on += 1
            last_passed_on = time.monotonic()
        if passed_on > 1 and time.monotonic() - last_passed_on > KILL_SECONDS:
            for worker in running:
                worker.process.kill()
        for worker in [item for item in running if item.process.poll() is not None]:
            running.remove(worker)
            trouble = _after_end(worker, study, storage, bool(interruptions.received))
            if trouble:
                logger.warning(trouble)
                troubles.append(trouble)
        refresh(passed_on)
        if running:
            try:
                running[0].process.wait(REFRESH_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    return troubles


def _after_end(
    worker: WorkerProcess, study: Study, storage: BaseStorage, interrupted: bool
) -> str | None:
    code = worker.process.returncode
    # Negative: the signal came while the worker was starting and had not prepared for it.
    if code == 0 or (
        interrupted and code in (*STOPPED_EXIT_CODES, -signal.SIGINT, -signal.SIGTERM)
    ):
        return None
    if code < 0:
        reason = f"its worker was killed by {signal.Signals(-code).name}"
    else:
        reason = f"its worker exited with code {code}"
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(WORKER) == worker.name:
            try:
                storage.set_trial_user_attr(trial._trial_id, ERROR, reason)
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue
    where = f"; see {worker.log}" if worker.log else ""
    said = _last_line(worker.log)
    return f"worker {worker.slot.index}: {reason.removeprefix('its worker ')}{where}{said}"


def _last_line(log: Path | None) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log else []
    return f": {lines[-1]}" if lines else ""
