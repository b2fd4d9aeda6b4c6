"""The timed processes of `tests.benchmarks.service`: workers, and plain `study.optimize`."""

import os
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier, Lock
from pathlib import Path
from typing import Any

EPOCHS = 10
STUDY = "service"
OBJECTIVE = "tests.benchmarks.service:sleep"
ACCURACIES = tuple(0.5 + 0.04 * epoch for epoch in range(EPOCHS))
PLAIN_SQLITE_TIMEOUT_SECONDS = 300
BARRIER_SECONDS = 600

_barrier: Barrier
_opening: Lock


def make_config(trials: int) -> Any:
    from studies.config import load_study_file

    overrides = {
        "name": STUDY,
        "trial.objective": OBJECTIVE,
        "sampler.name": "random",
        "budget.trials": trials,
        "budget.minutes": None,
    }
    return load_study_file("quickstart", overrides)


@dataclass(frozen=True, slots=True)
class Load:
    """What one process is to do."""

    service: str
    url: str
    root: str
    """Of the checkpoints."""
    trials: int
    """Of this process; our workers share the study's budget instead."""
    epoch_seconds: float
    seed: int


@dataclass(slots=True)
class Timings:
    """What one process did; times in seconds."""

    ask: list[float] = field(default_factory=list)
    epoch: list[float] = field(default_factory=list)
    tell: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    """Of its trials, on the clock `time.monotonic`, which all processes share."""
    statements: int = 0
    statements_in_epochs: int = 0
    pings: int = 0
    """Of connections that were idle: each is a question to the server, beside the statements."""
    cpu: float = 0.0
    """Of the process, from the start."""
    started: float = 0.0
    mark: float = 0.0
    """When the last trial ended."""
    error: str | None = None

    def count(self, storage: Any) -> None:
        """Count a storage's statements, or its calls of a proxy, from now on."""
        import sqlalchemy

        if not hasattr(storage, "engine"):
            self._count_calls(storage)
            return
        engine = storage.engine

        @sqlalchemy.event.listens_for(engine, "before_cursor_execute")
        def counted(_: object, __: object, statement: str, *___: object) -> None:
            self.statements += not statement.startswith("BEGIN")

        ping = engine.dialect.do_ping

        def pinged(connection: Any) -> Any:
            self.pings += 1
            return ping(connection)

        engine.dialect.do_ping = pinged

    def _count_calls(self, storage: Any) -> None:
        import grpc
        from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
        from optuna.storages._grpc.client import GrpcClientCache

        timings = self

        class Counted(grpc.UnaryUnaryClientInterceptor):
            def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
                timings.statements += 1
                return continuation(details, request)

        storage._channel = grpc.intercept_channel(storage._channel, Counted())
        storage._stub = StorageServiceStub(storage._channel)  # type: ignore[no-untyped-call]
        storage._cache = GrpcClientCache(storage._stub)

    def start(self) -> None:
        self.cpu = time.process_time()
        self.started = self.mark = time.monotonic()

    @contextmanager
    def an_epoch(self) -> Iterator[None]:
        began, before = time.monotonic(), self.statements
        yield
        self.epoch.append(time.monotonic() - began)
        self.statements_in_epochs += self.statements - before

    def asked(self) -> None:
        self.ask.append(time.monotonic() - self.mark)

    @contextmanager
    def telling(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.mark = time.monotonic()
        self.tell.append(self.mark - began)
        self.ends.append(self.mark)


def share(barrier: Barrier, opening: Lock) -> None:
    global _barrier, _opening
    _barrier, _opening = barrier, opening


def serve(load: Load) -> Timings:
    """Be one process of either service."""
    import logging

    import optuna

    os.environ["OMP_NUM_THREADS"] = "1"
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    timings = Timings()
    try:
        (_ours if load.service == "hpsearch" else _plain)(load, timings)
    except Exception as error:  # noqa: BLE001
        if not timings.started:
            _barrier.abort()
        where = " < ".join(frame.name for frame in traceback.extract_tb(error.__traceback__)[::-1])
        said = " ".join(str(error.__cause__ or error).split())[:200]
        timings.error = f"{type(error).__name__} in {where}: {said}"
    timings.cpu = time.process_time() - timings.cpu
    return timings


def _ours(load: Load, timings: Timings) -> None:
    import torch
    from optuna.trial import Trial

    from data.dataset import Normalisation, Split
    from data.split import TrainingData
    from model.trial import EpochResult, TrialContext
    from search.lost import LostTrials
    from search.objective import Outcome
    from search.stop import StopRequest
    from search.worker import Worker
    from studies.checkpoints import open_checkpoints
    from studies.patience import DEFAULT_SECONDS, Patience
    from studies.storage import open_storage
    from studies.study import open_study

    def sleep(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        timings.asked()
        for epoch, accuracy in enumerate(ACCURACIES, start=1):
            time.sleep(load.epoch_seconds)
            with timings.an_epoch():
                yield EpochResult(epoch, accuracy, 1.0, 1000.0, {})

    class TimedWorker(Worker):
        def _tell(self, trial: Trial, outcome: Outcome, origin: str) -> None:
            with timings.telling():
                super()._tell(trial, outcome, origin)

    with _opening:
        storage = open_storage(load.url)
    timings.count(storage)
    none = Split(torch.empty(0, 3, 32, 32, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    patience = Patience(DEFAULT_SECONDS)
    _barrier.wait(BARRIER_SECONDS)
    timings.start()
    opened = patience.call(lambda: open_study(STUDY, storage))
    TimedWorker(
        opened=opened,
        storage=storage,
        objective=sleep,
        data=TrainingData(none, none, (), Normalisation((0.0,) * 3, (1.0,) * 3)),
        device=torch.device("cpu"),
        checkpoints=open_checkpoints(opened, Path(load.root), place=None),
        stop=StopRequest(),
        patience=patience,
        lost_trials=LostTrials(opened, storage),
        deadline=None,
    ).work()


def _plain(load: Load, timings: Timings) -> None:
    import optuna
    from optuna.study import _optimize
    from optuna.study._tell import _tell_with_warning

    from search.objective import suggest
    from search.space import make_space

    config = make_config(load.trials)
    space = make_space(config.space)
    with _opening:
        storage = _open_plain(load.url)
    timings.count(storage)

    def tell(*arguments: Any, **options: Any) -> Any:
        with timings.telling():
            return _tell_with_warning(*arguments, **options)

    # `optimize` says nothing when it has told a trial.
    vars(_optimize)["_tell_with_warning"] = tell

    def sleep(trial: optuna.Trial) -> float:
        suggest(trial, space)
        timings.asked()
        for epoch, accuracy in enumerate(ACCURACIES, start=1):
            time.sleep(load.epoch_seconds)
            with timings.an_epoch():
                trial.report(accuracy, epoch)
                if epoch < EPOCHS and trial.should_prune():
                    raise optuna.TrialPruned
        return max(ACCURACIES)

    _barrier.wait(BARRIER_SECONDS)
    timings.start()
    study = optuna.load_study(
        study_name=STUDY,
        storage=storage,
        sampler=optuna.samplers.RandomSampler(seed=load.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1),
    )
    study.optimize(sleep, n_trials=load.trials)


def _open_plain(url: str) -> Any:
    from optuna.storages import GrpcStorageProxy, RDBStorage

    if url.startswith("grpc"):
        proxied = GrpcStorageProxy(host="127.0.0.1", port=int(url.rpartition(":")[2]))
        proxied.wait_server_ready(BARRIER_SECONDS)
        return proxied
    sqlite = url.startswith("sqlite")
    arguments = {"connect_args": {"timeout": PLAIN_SQLITE_TIMEOUT_SECONDS}} if sqlite else {}
    storage = RDBStorage(url, arguments)
    # It keeps two connections, and 64 processes would have more than PostgreSQL allows.
    storage.engine.dispose()
    return storage
