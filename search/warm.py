"""Starting a study from what an earlier one has found, though their spaces may differ.

The best configurations of the earlier study are enqueued in the new one, and its finished trials
are copied into it, for the sampler to weigh. From then on the new study does not need the earlier
one, which may go on or be deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from data.errors import UserError
from model.hyperparameters import NOTEBOOK
from search.space import make_space, nearest_known, same_point
from studies.config import DEFAULT_OBJECTIVE, StudyConfig, is_fixed
from studies.confirmation import confirmation_of
from studies.ownership import OwnedStorage
from studies.results import TrialRecord, rank
from studies.study import WARM_START, OpenedStudy, earlier_study

STARTS = 3
"""How many of the earlier study's configurations are tried again."""
MOST_EARLIER_TRIALS = 200
"""A Gaussian process takes time with the cube of their number."""

EARLIER_TRIALS = "earlier_trials"
FINISHED = ("complete", "pruned", "diverged")


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a new study takes from an earlier one."""

    starts: list[dict[str, Any]]
    """To be tried first, best first. What a start does not name is left to the sampler."""
    attributes: dict[str, Any]
    """To be kept in the new study."""


def plan_warm_start(
    storage: OwnedStorage, config: StudyConfig, tried: Sequence[Mapping[str, Any]] = ()
) -> WarmStart:
    """Read from the earlier study what a new one will need.

    Args:
        config: of the new study, which names the earlier one.
        tried: points that are tried anyway.

    Raises:
        UserError: there is no such study, it has no complete trial, or the two have no parameter
            in common.
    """
    earlier = earlier_study(storage, config)
    assert earlier is not None
    name, records = earlier.config.name, earlier.records
    space = make_space(config.space)
    points = [
        nearest_known(space, _all_parameters(earlier.config, item))
        for item in _best_first(earlier, records)
    ]
    starts: list[dict[str, Any]] = []
    for point in points:
        if point and point not in tried and point not in starts:
            starts.append(point)
    if not any(points):
        raise UserError(
            f"study {name!r}: no parameter that study {config.name!r} varies has a value there, "
            "so there is nothing to start from"
        )
    trials = most_informative(_copies(earlier.config, config, records), MOST_EARLIER_TRIALS)
    taken = {"study": name, "starts": len(starts[:STARTS]), "trials": len(trials)}
    return WarmStart(starts[:STARTS], {WARM_START: taken, EARLIER_TRIALS: trials})


def _best_first(earlier: OpenedStudy, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The confirmed winner, if the study was confirmed, and then by what the search found."""
    confirmation = confirmation_of(earlier)
    winner = [records[confirmation.winner.trial]] if confirmation else []
    return [*winner, *rank(records)]


def _all_parameters(config: StudyConfig, trial: TrialRecord) -> dict[str, Any]:
    """A trial's parameters, with those that its study left to the defaults."""
    defaults = NOTEBOOK if config.trial.objective == DEFAULT_OBJECTIVE else {}
    return {**defaults, **trial.parameters}


def _copies(
    earlier: StudyConfig, config: StudyConfig, records: Sequence[TrialRecord]
) -> list[dict[str, Any]]:
    """The finished trials that are points of the new space, in a form for JSON.

    A learning curve means nothing to trials of another length: if the number of epochs differs,
    only complete trials are taken, and only their results.
    """
    space = make_space(config.space)
    varied = {name for name, parameter in earlier.space.items() if not is_fixed(parameter)}
    same_length = earlier.trial.epochs == config.trial.epochs
    copies = []
    for item in records:
        if item.state not in FINISHED or not (same_length or item.state == "complete"):
            continue
        parameters = _all_parameters(earlier, item)
        point = same_point(space, parameters, constant=parameters.keys() - varied)
        if point is not None:
            copies.append(
                {
                    "parameters": point,
                    "accuracies": list(item.accuracies) if same_length else [],
                    "value": item.value if item.state == "complete" else None,
                }
            )
    return copies


def most_informative(trials: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """At most so many trials: the best complete ones, then those that went on the longest."""

    def rating(trial: Mapping[str, Any]) -> tuple[bool, float, float]:
        value = trial["value"]
        if value is not None:
            return False, -value, 0.0
        return True, -len(trial["accuracies"]), -max(trial["accuracies"], default=0.0)

    return sorted(trials, key=rating)[:most]


def earlier_trials(opened: OpenedStudy) -> list[FrozenTrial]:
    """The trials of the study that this one started from, as points of its own space.

    Complete or pruned (diverged ones too: without a report if in their first epoch). They have
    their reports by epoch from 1 on, unless the epochs of the two studies differ: then they are
    all complete and have their values alone. Of a study that started from none: no trials.

    Raises:
        UserError: what is stored is not what hpsearch stores.
    """
    space = make_space(opened.config.space)
    try:
        return [
            optuna.trial.create_trial(
                state=TrialState.PRUNED if item["value"] is None else TrialState.COMPLETE,
                value=item["value"],
                params=item["parameters"],
                distributions=space,
                intermediate_values=dict(enumerate(item["accuracies"], start=1)),
            )
            for item in opened.study.user_attrs.get(EARLIER_TRIALS, [])
        ]
    except (LookupError, TypeError, ValueError) as error:
        name = opened.config.name
        raise UserError(
            f"study {name!r}: what is stored as its {EARLIER_TRIALS} was not written by hpsearch"
        ) from error
