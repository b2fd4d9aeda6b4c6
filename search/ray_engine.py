"""Workers on a Ray cluster: the same processes as on one machine, placed by Ray.

Each worker is an actor that starts `hpsearch worker` on its node and waits for it, so that signals,
exit codes and log lines are the same as everywhere. Ray finds a node for it and says when that is
lost; then the launcher takes its trial back and asks Ray for another place, as it does for a worker
that has died by itself.
"""

import logging
import math
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from search.launch import (
    MOST_CPU_WORKERS,
    Engine,
    Slot,
    WorkerProcess,
    start_worker,
    thread_limit,
)

# Read by Ray when it is imported. Without: usage reports to its makers; log lines of several
# workers taken for one because they differ in numbers only; colours in files.
for _name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS", "RAY_COLOR_PREFIX"):
    os.environ.setdefault(_name, "0")
import ray  # noqa: E402

SETTINGS = ("AWS_", "HPSEARCH_", "PG")
"""Workers on other nodes have of the environment here what begins so."""
CONNECT_SECONDS = 10
PATIENCE_SECONDS = 10
"""After which a worker that Ray has not yet found room for is reported."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """How many workers a cluster has room for, and what each is given of a node."""

    workers: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU" if self.gpus else ""
        return " and ".join(filter(None, [gpus, f"{self.cpus} CPU" if self.cpus else ""]))


def share(
    nodes: Sequence[Mapping[str, float]], workers: int | None, workers_per_gpu: int
) -> Share | None:
    """Divide a cluster among workers; None if it has neither GPUs nor CPUs.

    Args:
        nodes: the resources of each, `CPU` and `GPU` among them.
        workers: how many, if not as many as there is room for (on nodes without GPUs: one a core,
            `MOST_CPU_WORKERS` a node at most).
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpus:
        capacity = sum(int(node["GPU"]) * workers_per_gpu for node in with_gpus)
        cpus = min(int(node.get("CPU", 0) // (node["GPU"] * workers_per_gpu)) for node in with_gpus)
        # Rounded down to what Ray counts in, so that all have room.
        return Share(workers or capacity, cpus, math.floor(10_000 / workers_per_gpu) / 10_000)
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cores:
        return None
    count = workers or sum(min(number, MOST_CPU_WORKERS) for number in cores)
    room = [
        cpus
        for cpus in range(1, max(cores) + 1)
        if sum(number // cpus for number in cores) >= count
    ]
    return Share(count, max(room, default=1), 0.0)


class WorkerActor:
    """Lives in a process of Ray's on the node of the worker."""

    _worker: WorkerProcess

    def __repr__(self) -> str:
        """With which Ray begins each of its lines."""
        return "hpsearch"

    def start(
        self,
        slot: Slot,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path | None,
        directory: Path,
    ) -> str:
        """Start the worker: how the study knows it."""
        if directory.is_dir():
            os.chdir(directory)  # Where the study file's own objective may be.
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        # Ray's processes block it, and a new process blocks what this thread does.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        # Ray ends the children of this process with it, but not if it is killed.
        setpriv = shutil.which("setpriv")
        wrapper = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
        self._worker = start_worker(slot, arguments, environment, log, wrapper)
        return self._worker.name

    def wait(self, _started: str) -> int:
        """Wait for the worker: its exit code."""
        return self._worker.process.wait()

    def send_signal(self, number: int) -> None:
        self._worker.process.send_signal(number)


class RayWorker:
    """A worker as seen from the launcher; see `RunningWorker`."""

    def __init__(
        self, actor: Any, started: Any, slot: Slot, log: Path | None, wants: Share
    ) -> None:
        self.slot = slot
        self.log = log
        self.name = ""
        self._actor = actor
        self._started = started
        self._exit_code = actor.wait.remote(started)
        self._wants = wants
        self._reported_at = time.monotonic() + PATIENCE_SECONDS
        self._end: int | str | None = None

    def ended(self) -> int | str | None:
        if self._end is not None:
            return self._end
        try:
            if not self.name and _is_ready(self._started):
                self.name = ray.get(self._started)
            if _is_ready(self._exit_code):
                self._leave(ray.get(self._exit_code))
        except ray.exceptions.RayError as error:
            self._leave(_reason(error))
        if not self.name and self._end is None and time.monotonic() > self._reported_at:
            self._reported_at = math.inf
            logger.warning(
                "worker %d: Ray has not started it yet; it wants %s, free in the cluster are %s",
                self.slot.index,
                self._wants,
                _free(),
            )
        return self._end

    def send_signal(self, number: signal.Signals) -> None:
        if self._end is not None:
            return
        if self.name:
            self._actor.send_signal.remote(int(number))
        else:
            self._leave(128 + number)

    def _leave(self, end: int | str) -> None:
        """What Ray has reserved for it is free again."""
        self._end = end
        ray.kill(self._actor)


def _reason(error: ray.exceptions.RayError) -> str:
    """What has ended a call to an actor, in words."""
    missing = re.search(r"No module named '[^']+'", str(error))
    if missing:
        return f"hpsearch is not installed on its node as it is here ({missing[0]})"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its node, or Ray's process there, was lost"
    return " ".join(str(getattr(error, "cause", None) or error).split())[:300]


def _is_ready(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def _free() -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    counts = [
        f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s"
        for kind in ("GPU", "CPU")
        if kind in total
    ]
    return ", ".join(counts) or "none"


@contextmanager
def ray_engine(
    address: str | None,
    url: str,
    workers: int | None,
    workers_per_gpu: int,
) -> Iterator[Engine]:
    """A Ray cluster, for as long as the context lasts. Ray puts its own signal handlers in place.

    Args:
        address: `auto` or that of a running cluster; None for `RAY_ADDRESS`, and without that for
            one of this machine alone, which ends with the context.
        url: of the storage.

    Raises:
        UserError: the address cannot be reached, the cluster has nothing for workers, or has nodes
            that cannot share an SQLite file.
    """
    _connect(address or os.environ.get("RAY_ADDRESS") or "local")
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if len(nodes) > 1 and url.startswith("sqlite"):
            raise UserError(
                f"the Ray cluster has {len(nodes)} nodes, which cannot share an SQLite file; take "
                "a database server: --storage postgresql+psycopg://..."
            )
        wants = share(nodes, workers, workers_per_gpu)
        if wants is None:
            raise UserError("the Ray cluster has neither GPUs nor CPUs for a worker")
        threads = thread_limit(wants.cpus)
        kind = "gpu" if wants.gpus else "cpu"
        slots = [Slot(index, kind, threads) for index in range(1, wants.workers + 1)]
        actor_class = ray.remote(WorkerActor).options(
            num_cpus=wants.cpus,
            num_gpus=wants.gpus,
            max_concurrency=2,  # A call of `wait`, which lasts, and signals.
            scheduling_strategy="SPREAD",
        )
        # How libpq and boto3 find what they do here. An argument of a call, because what Ray sets
        # as environment itself stands in its dashboard and its logs.
        settings = {key: value for key, value in os.environ.items() if key.startswith(SETTINGS)}

        def start(
            slot: Slot,
            arguments: Sequence[str],
            environment: Mapping[str, str],
            log: Path | None,
        ) -> RayWorker:
            actor = actor_class.remote()
            started = actor.start.remote(
                slot, list(arguments), {**settings, **environment}, log, Path.cwd()
            )
            return RayWorker(actor, started, slot, log, wants)

        yield Engine(slots, start)
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        try:  # Ray itself would try for minutes.
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UserError(f"--address {address}: no Ray cluster there ({error})") from error
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--address {address}: no Ray cluster there: {reason}") from error
