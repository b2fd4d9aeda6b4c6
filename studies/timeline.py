"""Who ran what when, and what it cost; in numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from studies.config import StudyConfig
from studies.results import Run, TrialRecord


def runs_of(item: TrialRecord, now: datetime | None = None) -> tuple[Run, ...]:
    """All runs of a trial, the oldest first.

    Args:
        now: when a running trial's run ends, if it is not silent: one that is has ended with its
            last heartbeat. Without it, the run of one that is not silent is left out.
    """
    earlier = item.earlier_runs
    if item.started is None or (earlier and earlier[-1].started == item.started):
        return earlier
    until = item.silent_since or now
    ended = until if item.seconds is None else item.started + timedelta(seconds=item.seconds)
    if ended is None or item.state == "waiting":
        return earlier
    lost, ended = item.silent_since is not None, max(item.started, ended)
    epochs = max(len(item.accuracies), item.epochs_before)
    last = Run(item.worker, item.started, ended, item.epochs_before, epochs, lost)
    return (*earlier, last)


def epochs_trained(runs: Sequence[Run]) -> int:
    """In all of these runs, such as were trained again counted again."""
    return sum(run.epochs - run.epochs_before for run in runs)


def seconds_taken(runs: Sequence[Run]) -> float:
    """By all of these runs together."""
    return sum((run.ended - run.started).total_seconds() for run in runs)


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A run, and how it ended."""

    trial: int
    run: Run
    end: str
    """The trial's state; or `lost` (the worker) or `handed back`, if it went on in another run."""


def timeline(records: Sequence[TrialRecord], now: datetime) -> list[ShownRun]:
    """All runs of all trials, in the order of their start."""
    shown = []
    for item in records:
        for run in runs_of(item, now):
            end = "lost" if run.lost else "handed back" if run in item.earlier_runs else item.state
            shown.append(ShownRun(item.number, run, end))
    return sorted(shown, key=lambda entry: (entry.run.started, entry.trial))


@dataclass(frozen=True, slots=True)
class WorkerTime:
    """What a worker did between the start of its first run and the end of its last."""

    worker: str
    first: datetime
    last: datetime
    runs: int
    resumed: int
    """Runs that went on after epochs of an earlier run."""
    lost: int
    busy_seconds: float
    idle_seconds: float
    """Between its runs: waiting for a trial, for a suggestion or for the database."""


def worker_times(shown: Sequence[ShownRun]) -> list[WorkerTime]:
    """A line for each worker, in the order of their first runs.

    A worker that was started again has another name.
    """
    by_worker: dict[str, list[Run]] = {}
    for entry in shown:
        by_worker.setdefault(entry.run.worker or "unknown", []).append(entry.run)
    times = []
    for worker, runs in by_worker.items():
        first, last = runs[0].started, max(run.ended for run in runs)
        busy = seconds_taken(runs)
        times.append(
            WorkerTime(
                worker=worker,
                first=first,
                last=last,
                runs=len(runs),
                resumed=sum(run.epochs_before > 0 for run in runs),
                lost=sum(run.lost for run in runs),
                busy_seconds=busy,
                idle_seconds=max((last - first).total_seconds() - busy, 0.0),
            )
        )
    return times


@dataclass(frozen=True, slots=True)
class Restarts:
    """What went on elsewhere, or once more."""

    workers_lost: int
    trials_taken_up_again: int
    """By another worker, or by the same one after it had handed them back."""


def restarts(shown: Sequence[ShownRun]) -> Restarts:
    """How many workers were lost, and how many trials had more than one run."""
    runs = Counter(entry.trial for entry in shown)
    lost = {entry.run.worker for entry in shown if entry.run.lost}
    return Restarts(len(lost), sum(count > 1 for count in runs.values()))


@dataclass(frozen=True, slots=True)
class Cost:
    """What was paid, and what was not."""

    epochs: int
    """Trained, in all runs."""
    repeated_epochs: int
    """Of these, such as a trial had reached before, in a run whose state was lost."""
    pruned_epochs: int
    """That the pruned trials would have gone on for."""
    seconds: float
    """That workers had trials for, added up."""
    pruned_seconds: float
    """What the `pruned_epochs` would have taken, each trial at its own speed."""
    idle_seconds: float


def cost(records: Sequence[TrialRecord], config: StudyConfig, now: datetime) -> Cost:
    """Epochs and hours, spent and saved."""
    epochs = repeated = pruned_epochs = 0
    seconds = pruned_seconds = 0.0
    for item in records:
        runs = runs_of(item, now)
        trained = epochs_trained(runs)
        took = seconds_taken(runs)
        epochs += trained
        repeated += max(trained - max((run.epochs for run in runs), default=0), 0)
        seconds += took
        if item.state == "pruned":
            left = config.trial.epochs - len(item.accuracies)
            pruned_epochs += left
            pruned_seconds += left * took / trained if trained else 0.0
    idle = sum(worker.idle_seconds for worker in worker_times(timeline(records, now)))
    return Cost(epochs, repeated, pruned_epochs, seconds, pruned_seconds, idle)
