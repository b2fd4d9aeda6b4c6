"""Letting a user's own configuration be tried."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from data.errors import UserError
from search.budget import budgeted
from search.space import choice_of, make_space
from studies.study import OpenedStudy


def enqueue_trial(opened: OpenedStudy, values: Mapping[str, Any]) -> str:
    """Add a waiting trial with these parameters; the sampler chooses those not named.

    Returns:
        A line that says what was done.

    Raises:
        UserError: a name or value is not in the study's space.
    """
    name = opened.config.name
    space = make_space(opened.config.space)
    parameters = {}
    for key, value in values.items():
        if key not in space:
            raise UserError(f"study {name!r} has no parameter {key!r}; it has {', '.join(space)}")
        parameters[key] = _checked(key, space[key], value)
    before = opened.study.get_trials(deepcopy=False)
    opened.study.enqueue_trial(parameters)
    trials = opened.study.get_trials(deepcopy=False)
    new = next(
        trial for trial in reversed(trials[len(before) :]) if trial.state == TrialState.WAITING
    )
    shown = ", ".join(f"{key} {value}" for key, value in parameters.items())
    line = f"study {name!r}: trial {new.number} is waiting for a worker: {shown}"
    limit = opened.config.budget.trials
    if all(trial.number != new.number for trial in budgeted(trials, limit)):
        line += (
            f"; the budget of {limit} trials is taken: hpsearch run {name} --trials "
            f"{len(budgeted(trials, None))} runs it"
        )
    return line


def _checked(key: str, distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        choice = choice_of(distribution, value)
        if choice is not None:
            return choice
        listed = ", ".join(str(choice) for choice in distribution.choices)
        raise UserError(f"{key}={value}: the study offers {listed}")
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    whole = isinstance(distribution, IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise UserError(f"{key}={value}: not a {'whole ' if whole else ''}number")
    if not distribution.low <= value <= distribution.high:
        raise UserError(f"{key}={value}: not from {distribution.low:g} to {distribution.high:g}")
    return int(value) if whole else float(value)
