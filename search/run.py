"""A whole run: prepare the study, run the workers, export the best. And one worker by itself."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Self, TypeVar

from rich.live import Live

from data.errors import UserError
from data.files import DEFAULT_ROOT
from search.background import Background
from search.budget import Turn, left_of, next_turn
from search.device import placed, taken_device
from search.draw import offer_export
from search.export import Exported, any_device, describe, export_best
from search.launch import (
    MOST_DEATHS,
    Engine,
    Interruptions,
    Place,
    RunningWorker,
    Slot,
    local_engine,
    supervise,
)
from search.live import View, WorkerRow, render
from search.lost import LostTrials
from search.objective import load_objective
from search.prepare import Prepared, create_from_file, join
from search.stop import GRACE_SECONDS, StopRequest, signals_as_before
from search.terminal import SafeConsole
from search.worker import Worker
from studies.artifacts import EXPORTED, kept_evaluation
from studies.checkpoints import CheckpointDirectory, open_checkpoints, reaching
from studies.config import DEFAULT_OBJECTIVE, SHIPPED, StudyConfig
from studies.confirmation import Confirmation, mentioned
from studies.ownership import OwnedStorage
from studies.patience import CHECKPOINTS, DEFAULT_SECONDS, Patience, StorageLost
from studies.results import TrialRecord, summarise, utc_now
from studies.standing import UNREADABLE
from studies.storage import URL_VARIABLE, masked, storage_failure
from studies.study import (
    OpenedStudy,
    check_settings,
    check_versions,
    exists,
    open_study,
    started_from,
)
from studies.text import counted

T = TypeVar("T")

SOON_SECONDS = 0.5
"""For so long the live view waits for the storage before it shows what it knew."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `hpsearch run` was asked for, beside the study file."""

    command: str = "the same call again"
    """To be typed again to continue; without a password."""
    origin: str = "the study file"
    """As it was named, for messages."""
    root: Path = DEFAULT_ROOT
    """Where data sets, checkpoints and logs go."""
    checkpoints: str | None = None
    """Where checkpoints go instead: a folder, or `s3://bucket/prefix`."""
    workers: int | None = None
    """By default one a GPU, or up to 4 on a CPU."""
    workers_per_gpu: int = 1
    storage_patience: float = DEFAULT_SECONDS
    """For how many seconds workers go on while the storage does not answer."""
    grace: float = GRACE_SECONDS
    """How many seconds a running epoch has to end, when asked to stop."""
    engine: str = "local"
    """Or `ray`."""
    address: str | None = None
    """Of the Ray cluster."""
    tensorboard: Path | None = None
    """Where trials leave what TensorBoard shows; in it, each study has a folder."""


DEFAULT_OPTIONS = RunOptions()


@dataclass(frozen=True, slots=True)
class Launcher:
    """What serves the launcher of `hpsearch run` or `confirm` from its start to its end."""

    console: SafeConsole
    storage: OwnedStorage
    options: RunOptions
    engine: AbstractContextManager[Engine]
    interruptions: Interruptions
    patience: Patience

    @classmethod
    def of(cls, storage: OwnedStorage, options: RunOptions) -> Self:
        """To be called first, before there is anything of a study.

        Raises:
            UserError: GPUs of this machine that workers would have are missing or have no memory.
        """
        patience = Patience(options.storage_patience)
        engine = _engine(storage, options)
        return cls(SafeConsole(), storage, options, engine, Interruptions(), patience)


@signals_as_before()
def run_study(
    config: StudyConfig, storage: OwnedStorage, options: RunOptions = DEFAULT_OPTIONS
) -> int:
    """Run `hpsearch run`: create or continue the study, run workers, export the best.

    Returns:
        The exit code: 0, 1 if workers died or nothing was found, 128 + signal if interrupted.

    Raises:
        StorageLost: the storage has not answered for too long.
        UserError: the study file, its data and an earlier study of the name do not fit together, or
            GPUs are missing or occupied.
    """
    load_objective(config.trial.objective)
    launcher = Launcher.of(storage, options)
    prepared = create_from_file(storage, config, options.origin, options.root)
    checkpoints = open_checkpoints(prepared.opened, options.root, options.checkpoints)
    announce(launcher.console, prepared, storage.url)
    launcher.interruptions.install()

    def search() -> int:
        troubles: list[str] = []
        if not is_spent(prepared.opened, storage):
            troubles = run_workers(launcher, prepared.opened, config.data.source)
        return _finish(launcher, prepared, checkpoints, troubles)

    return unless_stopped(launcher, search)


def unless_stopped(launcher: Launcher, work: Callable[[], int]) -> int:
    """The exit code of the work; or of an interruption that ends it, or after which the storage is
    lost.

    Raises:
        StorageLost: nobody has interrupted.
    """
    try:
        return work()
    except KeyboardInterrupt:
        return stopped(launcher)
    except StorageLost as error:
        if not launcher.interruptions.received:
            raise
        logger.warning("%s", error)
        return stopped(launcher)


def is_spent(opened: OpenedStudy, storage: OwnedStorage) -> bool:
    """Whether the budget leaves nothing to do, not even to wait for a running trial."""
    may_create, limit = opened.config.sampler.name != "grid", opened.config.budget.trials
    trials, left = left_of(storage, opened.study._study_id, limit)
    return next_turn(trials, left, may_create) is Turn.DONE


def run_workers(launcher: Launcher, opened: OpenedStudy, source: str) -> list[str]:
    """Run workers until the budget is spent, with the live view on a terminal; see `supervise`.

    Args:
        source: where this machine has the data.
    """
    console, options, config = launcher.console, launcher.options, opened.config
    patience = launcher.patience
    root = options.root.absolute()  # Workers elsewhere have no such working directory.
    logs = opened.directory(root) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    arguments = [config.name, "--directory", str(root), "--data", source]
    arguments += ["--storage-patience", str(options.storage_patience)]
    arguments += ["--grace", str(options.grace)]
    if config.trial.objective != DEFAULT_OBJECTIVE:
        arguments += ["--allow-objective", config.trial.objective]
    if options.checkpoints:
        arguments += ["--checkpoints", options.checkpoints]
    if options.tensorboard:
        arguments += ["--tensorboard", str(options.tensorboard.absolute())]
    # The URL may hold a password: it goes by the environment, which only the user can read.
    environment = {URL_VARIABLE: launcher.storage.url}
    dead: list[tuple[str, str]] = []
    asking = Lock()

    def attempt(function: Callable[[], T], otherwise: T) -> T:
        # If the storage is lost, it is so to the workers as well, which end by themselves.
        try:
            return patience.attempt(function, otherwise)
        except StorageLost:
            return otherwise
        except UNREADABLE as error:
            # They go on as long as they can.
            if storage_failure(error) is None:
                raise
            return otherwise

    def take_back_first() -> bool:
        worker, reason = dead[0]
        had_trial = launcher.storage.take_back(
            opened.study._study_id, worker, config.trial.max_retries, reason
        )
        del dead[0]
        return had_trial

    def take_back_dead() -> bool:
        # Without any, nothing would be asked of the storage, and that is not an answer.
        found = False
        with asking:
            for _ in list(dead):
                found = attempt(take_back_first, False) or found
        return found

    def take_back(worker: RunningWorker, reason: str) -> bool:
        dead.append((worker.name, reason))
        return take_back_dead()

    def look(*_: object) -> None:
        take_back_dead()

    def watch(engine: Engine) -> list[str]:
        def start(slot: Slot) -> RunningWorker:
            log = logs / f"worker-{slot.index}.log" if console.is_terminal else None
            return engine.start(slot, arguments, environment, log)

        def supervised(refresh: Callable[[Sequence[Place], int], None]) -> list[str]:
            most_deaths = max(MOST_DEATHS, config.trial.max_retries + 2)
            interruptions = launcher.interruptions
            return supervise(engine.slots, start, take_back, interruptions, refresh, most_deaths)

        if not console.is_terminal:
            return supervised(look)
        run_started = time.time()
        records: list[TrialRecord] = []

        def ask() -> list[TrialRecord]:
            nonlocal records
            take_back_dead()
            with asking:
                records = attempt(lambda: opened.records, records)
            return records

        # A storage that hangs is to hold up neither the view nor what Ctrl-C is to do.
        asked = Background(ask, records)
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def refresh(places: Sequence[Place], interrupted: int) -> None:
                records = asked.latest(SOON_SECONDS)
                view = View(
                    opened.config,
                    masked(launcher.storage.url),
                    records,
                    _rows(places, records),
                    utc_now(),
                    run_started,
                    interrupted,
                    _trouble(patience),
                )
                live.update(render(view), refresh=True)

            return supervised(refresh)

    with launcher.engine as engine:
        launcher.interruptions.install()  # Again: Ray puts its own handlers in their place.
        troubles = watch(engine)
    while dead:
        patience.call(take_back_first, lambda: not launcher.interruptions.received)
    return troubles


def _engine(storage: OwnedStorage, options: RunOptions) -> AbstractContextManager[Engine]:
    if options.engine == "local":
        return nullcontext(local_engine(options.workers, options.workers_per_gpu))
    from search.ray_engine import ray_engine  # An extra.

    return ray_engine(options.address, storage.url, options.workers, options.workers_per_gpu)


def _trouble(patience: Patience) -> str | None:
    if patience.trouble is None:
        return None
    return (
        f"the storage has not answered for {patience.waited:.0f} s ({patience.trouble}); "
        f"training goes on, and what it gives is kept, for {patience.seconds:.0f} s"
    )


def announce(console: SafeConsole, prepared: Prepared, url: str) -> None:
    opened = prepared.opened
    name = opened.config.name
    if prepared.is_new:
        console.print(f"study {name!r} created in {masked(url)}")
        earlier = started_from(opened)
        if earlier:
            console.print(f"it {earlier}")
    else:
        finished = summarise(opened.records).finished
        console.print(
            f"study {name!r} continues in {masked(url)}: {counted(finished, 'trial')} finished so "
            "far",
        )


def _rows(places: Sequence[Place], records: Sequence[TrialRecord]) -> list[WorkerRow]:
    running = {item.worker: item for item in records if item.state == "running"}
    return [
        WorkerRow(place.worker.slot, running.get(place.worker.name), _state(place))
        for place in places
    ]


def _state(place: Place) -> str:
    if place.ended:
        return "ended"
    if place.starts_again is not None:
        return "starts again"
    return "running" if place.worker.name else "waits"


def _with_source_of(study: StudyConfig, config: StudyConfig) -> StudyConfig:
    """The same images may be elsewhere on this machine; their digest is what counts."""
    data = config.data.model_copy(update={"source": study.data.source})
    return config.model_copy(update={"data": data})


def _finish(
    launcher: Launcher,
    prepared: Prepared,
    checkpoints: CheckpointDirectory,
    troubles: Sequence[str],
) -> int:
    console, options, opened = launcher.console, launcher.options, prepared.opened
    interruptions = launcher.interruptions
    interruptions.raises = True
    if interruptions.received and launcher.patience.trouble:
        return stopped(launcher)  # To ask once more would take the time of whoever wants to go.
    records = launcher.patience.call(lambda: opened.records, lambda: not interruptions.received)
    summary = summarise(records)
    console.print(
        f"{counted(summary.finished, 'trial')} finished ({summary.complete} complete, "
        f"{summary.pruned} pruned, {summary.diverged} diverged), {summary.failed} failed",
    )
    for trouble in troubles:
        console.print(trouble, style="red")
    if interruptions.received:
        if summary.best and summary.best.value is not None:
            console.print(f"best so far: trial {summary.best.number}, {summary.best.value:.2%}")
        return stopped(launcher)
    if summary.best is None:
        console.print("no trial is complete, so there is no model to export")
        return 1
    output = opened.directory(options.root) / EXPORTED

    def export() -> tuple[Exported, Confirmation | None]:
        kept = kept_evaluation(opened, options.root)
        exported = export_best(prepared, checkpoints, output, kept, any_device())
        offer_export(opened, output)
        return exported, mentioned(opened)

    exported, confirmation = launcher.patience.call(export)
    console.print(describe(exported))
    if confirmation:
        console.print(
            f"{confirmation.headline}; hpsearch export {opened.config.name} writes that one"
        )
    return 1 if troubles else 0


def stopped(launcher: Launcher) -> int:
    """Say how to continue; the exit code."""
    launcher.console.print(f"stopped; to continue: {launcher.options.command}")
    return launcher.interruptions.exit_code


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What `hpsearch worker` was asked for."""

    study: str
    """As it was named on the command line."""
    config: StudyConfig | None = None
    """Of the study file, if it was one: its study is created if there is none."""
    root: Path = DEFAULT_ROOT
    """Where data sets and checkpoints go."""
    checkpoints: str | None = None
    """As in `RunOptions`."""
    source: str | None = None
    """Where this machine has the data, if not where the study says."""
    allowed_objective: str | None = None
    """What may be imported beside the default and that of the study file."""
    warm_start: str | None = None
    """The study that this one must have started from."""
    grace: float = GRACE_SECONDS
    """As in `RunOptions`; so is `tensorboard`."""
    tensorboard: Path | None = None


def run_worker(
    storage: OwnedStorage, options: WorkerOptions, patience: Patience | None = None
) -> int:
    """Run `hpsearch worker`. It handles the signals of this process from then on.

    Args:
        patience: for a storage that does not answer; by default as the command has it.

    Returns:
        The exit code: 0, or 128 + signal if asked to stop.

    Raises:
        StorageLost: the storage has not answered for too long.
        UserError: the study, its data and what is given here do not fit together, or GPUs are
            missing or occupied.
        WorkerBroken: of no more use is this process, to go on needs another.
    """
    patience = patience or Patience(DEFAULT_SECONDS)
    # First: what is wrong with a GPU is said before the study is made and the data are read.
    with taken_device(options.root) as device:
        prepared = patience.call(lambda: _prepare(storage, options))
        settings = prepared.opened.config
        _check_warm_start(prepared.opened, options.warm_start)
        objective = _allowed_objective(settings, options)
        checkpoints = Patience(patience.seconds, of=CHECKPOINTS).call(
            lambda: _checkpoints(prepared.opened, options)
        )
        minutes, tensorboard = settings.budget.minutes, options.tensorboard
        stop = StopRequest(options.grace)
        stop.install()
        try:
            logger.info("joined study %s on %s", settings.name, device)
            Worker(
                opened=prepared.opened,
                storage=storage,
                objective=load_objective(objective),
                data=placed(prepared.data, device),
                device=device,
                checkpoints=checkpoints,
                stop=stop,
                patience=patience,
                lost_trials=LostTrials(prepared.opened, storage),
                deadline=None if minutes is None else time.time() + 60 * minutes,
                tensorboard=tensorboard and tensorboard / settings.name,
            ).work()
        except StorageLost as error:
            if not stop.requested:
                raise
            logger.warning("%s; a trial that was running is taken up again later", error)
        finally:
            stop.disarm()
        return stop.exit_code


def _prepare(storage: OwnedStorage, options: WorkerOptions) -> Prepared:
    config, study = options.config, options.study
    name = config.name if config else study
    if config and not exists(storage, name):
        return create_from_file(storage, config, study, options.root)
    joined = join(open_study(name, storage), options.root, options.source)
    check_versions(joined.opened)
    # A name that ships names the study; a file of the user's own is meant as it is.
    if config and study not in SHIPPED:
        check_settings(joined.opened, _with_source_of(joined.opened.config, config))
    return joined


def _checkpoints(opened: OpenedStudy, options: WorkerOptions) -> CheckpointDirectory:
    with reaching():
        return open_checkpoints(opened, options.root, options.checkpoints)


def _check_warm_start(opened: OpenedStudy, wanted: str | None) -> None:
    if wanted and opened.config.sampler.warm_start != wanted:
        started = started_from(opened) or "starts from no earlier study"
        raise UserError(f"study {opened.config.name!r} {started}: leave --warm-start {wanted} out")


def _allowed_objective(settings: StudyConfig, options: WorkerOptions) -> str:
    allowed = {DEFAULT_OBJECTIVE, options.allowed_objective}
    if options.config:
        allowed.add(options.config.trial.objective)
    objective = settings.trial.objective
    if objective not in allowed:
        raise UserError(
            f"study {settings.name!r} wants to run {objective!r}; if you trust it, start this "
            f"worker with --allow-objective {objective}"
        )
    return objective
