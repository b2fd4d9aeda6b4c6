"""Studies whose trials are known, for the tests of what is said of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search.space import make_space
from studies.config import StudyConfig, parse_study
from studies.findings import Findings, findings
from studies.results import Run, TrialRecord, record
from studies.study import OpenedStudy, create_or_continue

START = datetime(2026, 1, 1, 12)
NOW = START + timedelta(seconds=1000)

CONFIG: StudyConfig = parse_study(
    {
        "name": "small",
        "trial": {"epochs": 4},
        "space": {
            "rate": {"low": 0.001, "high": 1.0, "log": True},
            "decay": {"low": 0.0, "high": 1.0},
            "optimizer": ["sgd", "adam"],
            "width": 8,
        },
        "budget": {"trials": 6},
    },
    "small.toml",
)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def trial(
    number: int,
    state: str,
    *accuracies: float,
    begin: float | None = 0.0,
    seconds: float | None = 10.0,
    rate: float = 0.1,
    decay: float = 0.5,
    optimizer: str = "sgd",
    **changes: Any,
) -> TrialRecord:
    values: dict[str, Any] = {
        "number": number,
        "state": state,
        "parameters": {"rate": rate, "decay": decay, "optimizer": optimizer, "width": 8},
        "accuracies": accuracies,
        "value": max((item for item in accuracies if item == item), default=None),
        "worker": "host-1",
        "images_per_second": 100.0,
        "reason": None,
        "started": None if begin is None else at(begin),
        "seconds": seconds,
        "device": "cpu",
    }
    return TrialRecord(**{**values, **changes})


def run(worker: str, begin: float, end: float, before: int, epochs: int, lost: bool = False) -> Run:
    return Run(worker, at(begin), at(end), before, epochs, lost)


# Two workers, the second of which was lost; the third goes on with its trial.
SMALL = [
    trial(0, "complete", 0.1, 0.3, 0.2, 0.4, begin=0, seconds=40, rate=0.01),
    trial(
        1, "pruned", 0.2, 0.25, begin=10, seconds=20, worker="host-2", rate=0.5, optimizer="adam"
    ),
    trial(
        2,
        "complete",
        *(0.3, 0.5, 0.6, 0.7),
        begin=100,
        seconds=30,
        worker="host-3",
        epochs_before=1,
        earlier_runs=(run("host-2", 50, 70, 0, 2, lost=True),),
        rate=0.05,
        decay=0.25,
    ),
    trial(3, "diverged", 0.1, begin=60, seconds=5, rate=1.0),
    trial(4, "failed", begin=70, seconds=5, reason="ValueError: <b>no</b>"),
    trial(5, "running", 0.2, begin=900, seconds=None, optimizer="adam"),
    trial(6, "waiting", begin=None, seconds=None, parameters={}, worker=None),
]


STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}


Trials = Sequence[tuple[str, Mapping[str, Any], Sequence[float]]]
"""State, parameters and accuracies of each."""


def found(
    settings: Mapping[str, Any],
    trials: Trials,
    with_baseline: bool = False,
    storage: BaseStorage | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Findings:
    """What is found in a new study of these trials; see `study_of`."""
    return findings_of(study_of(settings, trials, storage, attributes), with_baseline)


def findings_of(opened: OpenedStudy, with_baseline: bool = False) -> Findings:
    first = record(opened.study.get_trials()[0]) if with_baseline else None
    return findings(opened, first, datetime(2027, 1, 1))


def study_of(
    settings: Mapping[str, Any],
    trials: Trials,
    storage: BaseStorage | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> OpenedStudy:
    """A new study of these trials.

    They are run by two workers in turn, ten seconds an epoch.

    Args:
        attributes: of each trial, beside its worker and device.
    """
    config = parse_study({"budget": {"trials": 10}, **settings}, "test")
    space = make_space(config.space)
    storage = storage or InMemoryStorage()
    opened, _ = create_or_continue(storage, config, "0" * 64, enqueued=[])
    for number, (state, parameters, accuracies) in enumerate(trials):
        ended = STATES[state].is_finished()
        begin = datetime(2026, 1, 1, 12) + timedelta(seconds=number * 10 * config.trial.epochs)
        took = timedelta(seconds=10 * len(accuracies))
        opened.study.add_trial(
            FrozenTrial(
                number=number,
                trial_id=number,
                state=STATES[state],
                value=max(item for item in accuracies if item == item)
                if state == "complete"
                else None,
                values=None,
                datetime_start=None if state == "waiting" else begin,
                datetime_complete=begin + took if ended else None,
                params=dict(parameters),
                distributions={name: space[name] for name in parameters},
                user_attrs={
                    "worker": f"host-{number % 2}",
                    "device": "cpu",
                    **(attributes or {}),
                },
                system_attrs={},
                intermediate_values=dict(enumerate(accuracies, start=1)),
            )
        )
    return opened
