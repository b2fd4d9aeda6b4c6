"""What a study has found so far, as plain data."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studies.config import StudyConfig, is_fixed
from studies.text import shortened

LONGEST_ATTRIBUTE = 500  # characters

# Attributes of a trial, written by its worker.
WORKER = "worker"
SEED = "seed"
IMAGES_PER_SECOND = "images_per_second"
BEST_EPOCH = "best_epoch"
DEVICE = "device"
THREADS = "threads"
DTYPE = "dtype"
"""What it is computed in, such as `bfloat16`; of hpsearch's own objective."""
FALLBACKS = "fallbacks"
"""`EpochResult.fallbacks` of the last epoch that had any, as a text; empty once it began anew."""
EPOCHS_BEFORE = "epochs_before"
DIVERGED = "diverged"
ERROR = "error"
OWNER = "owner"
"""The token of the worker that has the trial; none if none has."""
LOSSES = "lost_workers"
"""How many workers were lost while they ran the trial."""
FRUITLESS = "lost_workers_without_epoch"
"""How many of them since it last had an epoch that it had never had, and how many epochs it had
then; see `fruitless`."""
EARLIER_RUNS = "earlier_runs"
"""Those of a trial that was handed back or whose worker was lost; see `runs_until`."""
CONFIRMS = "confirms"
"""Of a retraining: the number of the trial, in the study that it confirms."""


STATE_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True, slots=True)
class Run:
    """The time in which one worker had a trial."""

    worker: str | None
    started: datetime
    """UTC, without a time zone; so is `ended`."""
    ended: datetime
    """Of a worker that was lost: its last sign of life."""
    epochs_before: int
    epochs: int
    """That the trial had when the run ended."""
    lost: bool
    """Whether the worker was lost, rather than that it handed the trial back."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial."""

    number: int
    state: str
    """`complete`, `pruned`, `diverged`, `failed`, `running` or `waiting`."""
    parameters: dict[str, Any]
    accuracies: tuple[float, ...]
    """Validation accuracy after each epoch, in [0, 1]."""
    value: float | None
    """What a complete trial is judged by; of others, the best so far, or None before the first.
    Epochs without a number (NaN) do not count."""
    worker: str | None
    images_per_second: float | None
    reason: str | None
    """Why it failed or diverged."""
    started: datetime | None
    """UTC, without a time zone."""
    seconds: float | None
    """From its (last) start to its end, or None while it runs."""
    epochs_before: int = 0
    """That it had when it was started last."""
    earlier_runs: tuple[Run, ...] = ()
    """Of other workers, or of an earlier start of this one, the oldest first."""
    device: str | None = None
    """`cpu`, or the GPU's model."""
    silent_since: datetime | None = None
    """Of a running trial without a heartbeat for too long: when it had its last. UTC."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A study's state in numbers."""

    complete: int
    pruned: int
    diverged: int
    failed: int
    running: int
    waiting: int
    best: TrialRecord | None

    @property
    def finished(self) -> int:
        """What counts towards the budget: trials that ended as they should."""
        return self.complete + self.pruned + self.diverged


def record(trial: FrozenTrial, silent_since: datetime | None = None) -> TrialRecord:
    """A trial as plain data."""
    accuracies = tuple(
        trial.intermediate_values[step] for step in sorted(trial.intermediate_values)
    )
    complete = trial.state == TrialState.COMPLETE
    attributes = trial.user_attrs
    started, ended = _utc(trial.datetime_start), _utc(trial.datetime_complete)
    numbers = [accuracy for accuracy in accuracies if not math.isnan(accuracy)]
    return TrialRecord(
        number=trial.number,
        state=_state(trial),
        parameters=dict(trial.params),
        accuracies=accuracies,
        value=trial.value if complete else max(numbers, default=None),
        worker=_text(attributes.get(WORKER)),
        images_per_second=_number(attributes.get(IMAGES_PER_SECOND)),
        reason=_text(attributes.get(ERROR) or attributes.get(DIVERGED)),
        started=started,
        seconds=(ended - started).total_seconds() if started and ended else None,
        epochs_before=_epochs(attributes.get(EPOCHS_BEFORE)),
        earlier_runs=_runs(attributes.get(EARLIER_RUNS)),
        device=_text(attributes.get(DEVICE)),
        silent_since=silent_since if trial.state == TrialState.RUNNING else None,
    )


def _text(stored: object) -> str | None:
    """An attribute that is to be a text; whoever can write to the database may have other ideas."""
    return None if stored is None else shortened(str(stored), LONGEST_ATTRIBUTE)


def _number(stored: object) -> float | None:
    return stored if isinstance(stored, int | float) and 0 <= stored < 1e12 else None


def _epochs(stored: object) -> int:
    return stored if isinstance(stored, int) and 0 <= stored < 1e12 else 0


def _runs(stored: object) -> tuple[Run, ...]:
    found = []
    for item in stored if isinstance(stored, list) else ():
        try:
            started, ended = (
                datetime.fromisoformat(item[key]).replace(tzinfo=None)
                for key in ("started", "ended")
            )
        except (KeyError, TypeError, ValueError):
            continue
        before, epochs = _epochs(item.get("epochs_before")), _epochs(item.get("epochs"))
        worker, lost = _text(item.get("worker")), item.get("lost") is True
        found.append(Run(worker, started, max(started, ended), before, epochs, lost))
    return tuple(found)


def utc_now() -> datetime:
    """Without a time zone, as all times here."""
    return datetime.now(UTC).replace(tzinfo=None)


def _utc(local: datetime | None) -> datetime | None:
    """Optuna's times are of this machine's time zone."""
    return local.astimezone(UTC).replace(tzinfo=None) if local else None


def runs_until(trial: FrozenTrial, ended: datetime, lost: bool) -> list[dict[str, Any]]:
    """What `EARLIER_RUNS` is to be of a trial whose run ends; said twice, it stays the same.

    Args:
        ended: UTC, without a time zone.
    """
    before = record(trial)
    runs, started = before.earlier_runs, before.started
    if started is not None and not (runs and runs[-1].started == started):
        epochs = len(trial.intermediate_values)
        until = max(started, ended)
        runs = (*runs, Run(before.worker, started, until, before.epochs_before, epochs, lost))
    return [for_json(asdict(run)) for run in runs]


def fruitless(before: object, epochs: int) -> tuple[int, int]:
    """What `FRUITLESS` is to be of a trial whose worker is lost.

    To begin anew and come as far as before is no progress: who is lost each time at the same place,
    or never comes farther than it once was, would else go on for ever.

    Args:
        before: what is stored of it; whoever can write to the database may have stored anything.
        epochs: that it has.
    """
    losses, most = 0, 0
    if isinstance(before, list) and len(before) == 2:
        losses, most = map(_epochs, before)
    return (1, epochs) if epochs > most else (losses + 1, most)


def _state(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED and DIVERGED in trial.user_attrs:
        return "diverged"
    return STATE_NAMES[trial.state]


def summarise(records: Sequence[TrialRecord]) -> Summary:
    """Count the trials and find the best."""
    states = [record.state for record in records]
    ranked = rank(records)
    return Summary(
        complete=states.count("complete"),
        pruned=states.count("pruned"),
        diverged=states.count("diverged"),
        failed=states.count("failed"),
        running=states.count("running"),
        waiting=states.count("waiting"),
        best=ranked[0] if ranked else None,
    )


def rank(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The complete trials, best first; of equals the earlier."""
    complete = [record for record in records if record.state == "complete"]
    return sorted(complete, key=lambda record: (-(record.value or 0.0), record.number))


def as_json(summary: Summary, top: Sequence[TrialRecord]) -> dict[str, Any]:
    """A form for `json.dumps`; see the dataclasses for the meaning of each key."""
    top_trials = [asdict(record) for record in top]
    document: dict[str, Any] = for_json(
        {**asdict(summary), "finished": summary.finished, "top": top_trials}
    )
    return document


def for_json(value: Any) -> Any:
    """What JSON has no word for, in its words: times are in UTC, and what is no number is null."""
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat() + "Z"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def varied_values(record: TrialRecord, config: StudyConfig) -> dict[str, Any]:
    """A trial's parameters that the study varies."""
    return {
        name: value
        for name, value in record.parameters.items()
        if name in config.space and not is_fixed(config.space[name])
    }


def readable_seconds(seconds: float) -> str:
    """For instance `45 s`, `3 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
