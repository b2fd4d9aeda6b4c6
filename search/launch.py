"""Starting one worker process a slot, watching them, and stopping them."""

import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from search.broken import BROKEN_AT_FIRST_EXIT_CODE, BROKEN_EXIT_CODE
from search.gpus import ORDER, VARIABLE, visible_gpus
from search.stop import STOPPED_EXIT_CODES, leave_terminal
from studies.ownership import LAUNCH_VARIABLE, worker_name
from studies.patience import STORAGE_LOST_EXIT_CODE, StorageLost
from studies.text import without_passwords

MOST_CPU_WORKERS = 4
"""By default; each takes about 0.7 GB of memory."""

POLL_SECONDS = 0.1
REFRESH_SECONDS = 1.0
SOON_SECONDS = 60.0
"""A worker that dies within this time after its start has died soon."""
MOST_DEATHS = 5
PAUSE_SECONDS = 1.0
"""Before the second start in a row; twice as long before each further one."""
USER_ERROR_EXIT_CODE = 2
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
    gpus = visible_gpus(workers)
    if not gpus:
        count = workers or min(cores, MOST_CPU_WORKERS)
        return [Slot(index, "cpu", _threads(cores, count)) for index in range(1, count + 1)]
    count = workers or len(gpus) * workers_per_gpu
    slots = []
    for index in range(1, count + 1):
        gpu = (index - 1) % len(gpus)
        environment = {**_threads(cores, count), VARIABLE: gpus[gpu], **ORDER}
        slots.append(Slot(index, f"cuda:{gpu}", environment))
    return slots


def _threads(cores: int, workers: int) -> dict[str, str]:
    return thread_limit(cores // workers)


def thread_limit(threads: int) -> dict[str, str]:
    """The environment of a worker that has so many cores, unless the user has said otherwise."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(threads, 1))}


class RunningWorker(Protocol):
    """A running or ended worker, wherever it is."""

    @property
    def slot(self) -> Slot: ...

    @property
    def log(self) -> Path | None: ...

    @property
    def name(self) -> str:
        """As the study knows it; empty as long as that is not known."""

    def ended(self) -> int | str | None:
        """None while it runs; then its exit code, or in words what took it away without one."""

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing to one that has ended."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs workers: processes of this machine, or those of a Ray cluster."""

    slots: Sequence[Slot]
    start: Callable[[Slot, Sequence[str], Mapping[str, str], Path | None], RunningWorker]
    """As `start_worker`."""


def local_engine(workers: int | None, workers_per_gpu: int) -> Engine:
    """Processes of this machine; see `plan_slots`."""
    return Engine(plan_slots(workers, workers_per_gpu), start_worker)


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker that is a process of this machine."""

    slot: Slot
    process: subprocess.Popen[bytes]
    launch: str
    """See `worker_name`."""
    log: Path | None

    @property
    def name(self) -> str:
        return worker_name(self.process.pid, self.launch)

    def ended(self) -> int | None:
        return self.process.poll()

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def start_worker(
    slot: Slot,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None,
    wrapper: Sequence[str] = (),
) -> WorkerProcess:
    """Start `hpsearch worker` in a process of its own.

    Args:
        arguments: after `worker`. Secrets do not belong here: other users can read them.
        environment: in addition to that of this process and of the slot.
        log: where its log lines go, or None for the terminal of this process.
        wrapper: a command that becomes the one that follows it.
    """
    # A session of its own: Ctrl-C reaches this process alone, which decides what to tell them.
    # -P: a folder called data or model where the user stands must not hide ours.
    command = [*wrapper, sys.executable, "-P", "-m", "search.cli", "worker", *arguments]
    launch = secrets.token_hex(4)
    output = log.open("ab") if log else None
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, **slot.environment, LAUNCH_VARIABLE: launch},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        if output:
            output.close()
    return WorkerProcess(slot, process, launch, log)


class Interruptions:
    """The signals to stop that this process has received, in order, for it and its workers."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.passed_on = 0
        """How many of them the workers know of."""
        self.raises = False
        """Whether the next one raises KeyboardInterrupt: when no worker is left to be asked."""
        self._last_passed_on = 0.0

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup, for one, has made this process ignore a signal for a reason.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    @property
    def exit_code(self) -> int:
        return 128 + self.received[0] if self.received else 0

    def pass_on(self, workers: Sequence[RunningWorker]) -> None:
        """Send them what is new; who stays in spite of a second signal is killed."""
        while self.passed_on < len(self.received):
            received = self.received[self.passed_on]
            # The terminal was closed: workers know of no terminal.
            number = signal.SIGTERM if received is signal.SIGHUP else received
            for worker in workers:
                worker.send_signal(number)
            self.passed_on += 1
            self._last_passed_on = time.monotonic()
        if self.passed_on > 1 and time.monotonic() - self._last_passed_on > KILL_SECONDS:
            for worker in workers:
                worker.send_signal(signal.SIGKILL)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            if signal.SIGHUP in self.received:
                return  # A terminal that is closed may say so twice; nobody has asked again.
            leave_terminal()
        self.received.append(signal.Signals(number))
        if self.raises:
            raise KeyboardInterrupt


@dataclass(slots=True)
class Place:
    """Where one worker runs at a time: the one that does now, or did last."""

    worker: RunningWorker
    started: float
    """On the clock `time.monotonic`, like the others."""
    deaths: int = 0
    """One after the other, each soon after its start."""
    starts_again: float | None = None
    """When, if it waits for that."""
    ended: bool = False
    """For good."""


def supervise(
    slots: Sequence[Slot],
    start: Callable[[Slot], RunningWorker],
    take_back: Callable[[RunningWorker, str], bool],
    interruptions: Interruptions,
    refresh: Callable[[Sequence[Place], int], None],
    most_deaths: int = MOST_DEATHS,
) -> list[str]:
    """Keep a worker in each slot until all have ended by themselves, and pass interruptions on.

    One that dies is started again: at once, then after ever longer pauses. One that dies soon after
    each of `most_deaths` starts is given up, unless it had a trial (which counts its losses) or was
    told to stop. One that is broken before it has trained an epoch has died soon, whenever that
    was: it would cost one trial after the other. None runs on when this returns or raises.

    Args:
        start: starts the worker of a slot.
        take_back: called with a worker that has died and why, to take back its trials; says
            whether it had any.
        refresh: called about every `REFRESH_SECONDS` with the number of interruptions so far.
        most_deaths: more than those that one trial can cause before it has failed.

    Returns:
        For each slot that was given up, a line that says why.

    Raises:
        StorageLost: every worker has waited for the storage until its patience was at its end.
    """
    places: list[Place] = []
    try:
        for slot in slots:
            places.append(Place(start(slot), time.monotonic()))
        troubles = _until_all_have_ended(
            places, start, take_back, interruptions, refresh, most_deaths
        )
    finally:
        # After an exception, nobody would look after them.
        _stop([place.worker for place in places], interruptions)
    if all(place.worker.ended() == STORAGE_LOST_EXIT_CODE for place in places):
        raise StorageLost(
            "no worker has reached the storage, or the checkpoints of its trial, for too long"
        )
    return troubles


def _stop(workers: Sequence[RunningWorker], interruptions: Interruptions) -> None:
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    while any(worker.ended() is None for worker in workers):
        interruptions.pass_on(workers)
        time.sleep(POLL_SECONDS)


def _until_all_have_ended(
    places: Sequence[Place],
    start: Callable[[Slot], RunningWorker],
    take_back: Callable[[RunningWorker, str], bool],
    interruptions: Interruptions,
    refresh: Callable[[Sequence[Place], int], None],
    most_deaths: int,
) -> list[str]:
    troubles: list[str] = []
    refreshed = 0.0
    while True:
        interruptions.pass_on([place.worker for place in places])
        if any(place.worker.ended() == 0 for place in places):
            _call_off(places)
        for place in places:
            if place.starts_again is not None:
                if interruptions.passed_on:
                    place.starts_again, place.ended = None, True
                elif time.monotonic() >= place.starts_again:
                    place.worker, place.started = start(place.worker.slot), time.monotonic()
                    place.starts_again = None
            elif not place.ended and (end := place.worker.ended()) is not None:
                interrupted = bool(interruptions.received)
                trouble = _after_end(place, end, take_back, interrupted, most_deaths)
                if trouble:
                    troubles.append(trouble)
        if all(place.ended for place in places):
            return troubles
        if time.monotonic() - refreshed > REFRESH_SECONDS:
            refresh(places, interruptions.passed_on)
            refreshed = time.monotonic()
        time.sleep(POLL_SECONDS)


def _call_off(places: Sequence[Place]) -> None:
    """The budget is spent: who still waits for room on a cluster would wait for nothing."""
    for place in places:
        if not place.worker.name and not place.ended:
            place.worker.send_signal(signal.SIGTERM)
            place.starts_again, place.ended = None, True


def _after_end(
    place: Place,
    end: int | str,
    take_back: Callable[[RunningWorker, str], bool],
    interrupted: bool,
    most_deaths: int,
) -> str | None:
    """Decide what becomes of a slot whose worker has ended: a line, if it is given up."""
    worker = place.worker
    # Negative: the signal came while the worker was starting and had not prepared for it.
    if end == 0 or (interrupted and end in (*STOPPED_EXIT_CODES, -signal.SIGINT, -signal.SIGTERM)):
        place.ended = True
        return None
    if isinstance(end, str):
        reason = end
    else:
        reason = f"killed by {signal.Signals(-end).name}" if end < 0 else f"exited with code {end}"
    had_trial = bool(worker.name) and take_back(worker, reason)
    where = f"; see {worker.log}" if worker.log else ""
    # One that was killed could say nothing of it.
    said = "" if isinstance(end, int) and end < 0 else _last_line(worker.log)
    line = f"worker {worker.slot.index}: {reason}{where}{said}"
    lived = time.monotonic() - place.started
    soon = lived < SOON_SECONDS or end == BROKEN_AT_FIRST_EXIT_CODE
    at_start = soon and not had_trial and end not in (*STOPPED_EXIT_CODES, BROKEN_EXIT_CODE)
    place.deaths = place.deaths + 1 if at_start else 1
    if interrupted or end in (USER_ERROR_EXIT_CODE, STORAGE_LOST_EXIT_CODE):
        place.ended = True
    elif place.deaths == most_deaths:
        place.ended = True
        broken = end == BROKEN_AT_FIRST_EXIT_CODE
        when = "before its first epoch" if broken else "soon after its start"
        line = f"{line} ({most_deaths} times {when}; given up)"
    else:
        pause = 0.0 if place.deaths == 1 else min(PAUSE_SECONDS * 2 ** (place.deaths - 2), 60.0)
        place.starts_again = time.monotonic() + pause
    logger.warning("%s%s", line, "" if place.ended else "; it is started again")
    return line if place.ended else None


def _last_line(log: Path | None) -> str:
    # A worker of another machine may have written its log there.
    lines = log.read_text(errors="replace").strip().splitlines() if log and log.exists() else []
    # It may be what an objective of the user's own has printed.
    return f": {without_passwords(lines[-1])}" if lines else ""
