"""The search space: a flat set of distributions, each of which every trial samples."""

import itertools
import math
import random
from collections.abc import Container, Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import FrozenTrial

from data.errors import UserError
from model.hyperparameters import check_name
from studies.config import DEFAULT_OBJECTIVE, Parameter, Range, StudyConfig, is_same
from studies.standing import UNREADABLE
from studies.text import as_written, shortened

MOST_GRID_TRIALS = 1000
ENQUEUED = "fixed_params"
"""What Optuna keeps of an enqueued trial."""
LONGEST_REASON = 300  # characters

Space = Mapping[str, BaseDistribution]


def make_space(parameters: Mapping[str, Parameter]) -> dict[str, BaseDistribution]:
    """The distributions of a study file's `[space]`; a fixed value is a single choice."""
    return {name: _distribution(parameter) for name, parameter in parameters.items()}


def _distribution(parameter: Parameter) -> BaseDistribution:
    if not isinstance(parameter, Range):
        return CategoricalDistribution(parameter)
    if parameter.is_whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def examples(parameters: Mapping[str, Parameter]) -> list[tuple[str, Any]]:
    """Every parameter with each of its choices or both its bounds, to be checked one by one."""
    return [
        (name, value)
        for name, parameter in parameters.items()
        for value in (
            (parameter.low, parameter.high) if isinstance(parameter, Range) else parameter
        )
    ]


def check_names(config: StudyConfig, origin: str) -> None:
    """Check the names in `[space]` for the default objective. Values take PyTorch to check.

    Raises:
        UserError: a name is unknown to it.
    """
    if config.trial.objective != DEFAULT_OBJECTIVE:
        return
    for name in config.space:
        try:
            check_name(name)
        except ValueError as error:
            raise UserError(f"{origin}: space.{name}: {error}") from error


def nearest_known(space: Space, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Of the point of a space that is closest to a configuration, what the two have in common.

    A number outside a range becomes the range's nearer bound. A parameter is left out if the space
    holds it fixed, if the configuration does not name it, or if its choices do not include the
    configuration's.
    """
    near = {
        name: _nearest_value(distribution, configuration[name])
        for name, distribution in space.items()
        if name in configuration and not distribution.single()
    }
    return {name: value for name, value in near.items() if value is not None}


def nearest(space: Space, configuration: Mapping[str, Any]) -> dict[str, Any] | str:
    """The point of a space that is closest to a configuration; see `nearest_known`.

    Returns:
        The point, or the name of a parameter whose choices do not include the configuration's.
    """
    point = nearest_known(space, configuration)
    for name, distribution in space.items():
        if name in configuration and name not in point and not distribution.single():
            return name
    return point


def offers(space: Space, name: str, value: Any, default: Any) -> bool:
    """Whether a point of the space can have this value of a parameter.

    Args:
        default: the value, if the space does not name the parameter.
    """
    return bool(value == (_nearest_value(space[name], value) if name in space else default))


def same_point(
    space: Space, configuration: Mapping[str, Any], constant: Container[str]
) -> dict[str, Any] | None:
    """The point of a space that is this very configuration of another one, or None.

    Args:
        constant: parameters that the other space does not vary. Where this space holds one of them
            fixed too, at whatever value, that is a difference of the spaces and not of points.
    """
    point = {}
    for name, distribution in space.items():
        if distribution.single() and (name in constant or name not in configuration):
            assert isinstance(distribution, CategoricalDistribution)  # As `make_space` makes it.
            point[name] = distribution.choices[0]
            continue
        value = _nearest_value(distribution, configuration.get(name))
        if value is None or value != configuration[name]:
            return None
        point[name] = value
    return point


def _nearest_value(distribution: BaseDistribution, value: Any) -> Any:
    """The closest value of a distribution; None if it is not among the choices, or no number."""
    if isinstance(distribution, CategoricalDistribution):
        return choice_of(distribution, value)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    bounded = min(max(value, distribution.low), distribution.high)
    return round(bounded) if isinstance(distribution, IntDistribution) else float(bounded)


def choice_of(distribution: CategoricalDistribution, value: Any) -> Any:
    """The choice that equals a value, or None."""
    return next((choice for choice in distribution.choices if is_same(choice, value)), None)


def checked_point(space: Space, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A user's own values, all of which have to be in the space as they are.

    Args:
        prefix: goes before the parameter's name in errors.

    Raises:
        UserError: a name or value is not in the space.
    """
    point = {}
    for name, value in values.items():
        if name not in space:
            raise UserError(f"{prefix}{name}: no such parameter; there are {', '.join(space)}")
        try:
            point[name] = _checked_value(space[name], value)
        except ValueError as error:
            raise UserError(f"{prefix}{name}={value}: {error}") from error
    return point


def misfit(space: Space, trial: FrozenTrial) -> str | None:
    """Why the values that a trial has before it is run are none of the space, if so.

    Optuna raises of some of them when it comes to them, and takes others as they are.
    """
    try:
        for name in trial.distributions.keys() & space.keys():
            check_distribution_compatibility(trial.distributions[name], space[name])
        values = {**trial.system_attrs.get(ENQUEUED, {}), **trial.params}
        checked_point(space, {name: values[name] for name in space if name in values})
    except (UserError, *UNREADABLE) as error:
        said = shortened(" ".join(str(error).split()), LONGEST_REASON)
        return f"its parameters are not of the study's space: {said}"
    return None


def _checked_value(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        choice = choice_of(distribution, value)
        if choice is not None:
            return choice
        listed = ", ".join(as_written(choice) for choice in distribution.choices)
        raise ValueError(f"the study offers {listed}")
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    whole = isinstance(distribution, IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"not a {'whole ' if whole else ''}number")
    if not distribution.low <= value <= distribution.high:
        raise ValueError(f"not from {distribution.low:g} to {distribution.high:g}")
    return int(value) if whole else float(value)


def grid(space: Space, points_per_range: int, seed: int) -> list[dict[str, Any]]:
    """All combinations of choices and of evenly spaced values of ranges, in random order.

    Raises:
        UserError: there are more than `MOST_GRID_TRIALS`.
    """
    values = {name: _grid_values(item, points_per_range) for name, item in space.items()}
    count = math.prod(len(choices) for choices in values.values())
    if count > MOST_GRID_TRIALS:
        sizes = " x ".join(f"{len(choices)} {name}" for name, choices in values.items())
        raise UserError(
            f"sampler.name: the grid has {count:,} points ({sizes}), more than "
            f"{MOST_GRID_TRIALS:,}; fix some parameters, or take another sampler"
        )
    points = [
        dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())
    ]
    random.Random(seed).shuffle(points)
    return points


def _grid_values(distribution: BaseDistribution, points: int) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return sorted({at(distribution, index / (points - 1)) for index in range(points)})


def at(distribution: BaseDistribution, quantile: float) -> Any:
    """The value at a quantile in [0, 1] of the uniform distribution over a parameter's scale."""
    if isinstance(distribution, CategoricalDistribution):
        last = len(distribution.choices) - 1
        return distribution.choices[min(int(quantile * len(distribution.choices)), last)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        value = math.exp(math.log(low) + quantile * (math.log(high) - math.log(low)))
    else:
        value = low + quantile * (high - low)
    bounded = min(max(value, low), high)
    return round(bounded) if isinstance(distribution, IntDistribution) else bounded
