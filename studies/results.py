"""What a study has found so far, as plain data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studies.text import shortened

LONGEST_ATTRIBUTE = 500  # characters

# Attributes of a trial, written by its worker.
WORKER = "worker"
SEED = "seed"
IMAGES_PER_SECOND = "images_per_second"
BEST_EPOCH = "best_epoch"
DEVICE = "device"
THREADS = "threads"
EPOCHS_BEFORE = "epochs_before"
DIVERGED = "diverged"
ERROR = "error"
OWNER = "owner"
"""The token of the worker that has the trial; none if none has."""
LOSSES = "lost_workers"
"""How many workers were lost while they ran the trial."""
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
class TrialRecord:
    """One trial."""

    number: int
    state: str
    """`complete`, `pruned`, `diverged`, `failed`, `running` or `waiting`."""
    parameters: dict[str, Any]
    accuracies: tuple[float, ...]
    """Validation accuracy after each epoch, in [0, 1]."""
    value: float | None
    """What a complete trial is judged by; of others, the best so far, or None before the first."""
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


def record(trial: FrozenTrial) -> TrialRecord:
    """A trial as plain data."""
    accuracies = tuple(
        trial.intermediate_values[step] for step in sorted(trial.intermediate_values)
    )
    complete = trial.state == TrialState.COMPLETE
    attributes = trial.user_attrs
    epochs_before = attributes.get(EPOCHS_BEFORE)
    seconds = trial.duration.total_seconds() if trial.duration else None
    return TrialRecord(
        number=trial.number,
        state=_state(trial),
        parameters=dict(trial.params),
        accuracies=accuracies,
        value=trial.value if complete else max(accuracies, default=None),
        worker=_text(attributes.get(WORKER)),
        images_per_second=_number(attributes.get(IMAGES_PER_SECOND)),
        reason=_text(attributes.get(ERROR) or attributes.get(DIVERGED)),
        started=trial.datetime_start,
        seconds=seconds,
        epochs_before=epochs_before if isinstance(epochs_before, int) else 0,
    )


def _text(stored: object) -> str | None:
    """An attribute that is to be a text; whoever can write to the database may have other ideas."""
    return None if stored is None else shortened(str(stored), LONGEST_ATTRIBUTE)


def _number(stored: object) -> float | None:
    return stored if isinstance(stored, int | float) and 0 <= stored < 1e12 else None


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

    def trial(record: TrialRecord) -> dict[str, Any]:
        started = record.started.isoformat() + "Z" if record.started else None
        return {**asdict(record), "started": started}

    counts = asdict(summary)
    counts["finished"] = summary.finished
    counts["best"] = trial(summary.best) if summary.best else None
    return {**counts, "top": [trial(record) for record in top]}
