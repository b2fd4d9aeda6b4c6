"""The search space: a flat set of distributions, each of which every trial samples."""

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from data.errors import UserError
from studies.config import Parameter, Range

MOST_GRID_TRIALS = 1000

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


def nearest(space: Space, configuration: Mapping[str, Any]) -> dict[str, Any] | str:
    """The point of a space that is closest to a configuration.

    A number outside a range becomes the range's nearer bound; a parameter that the space holds
    fixed, or that the configuration does not name, is left to the space.

    Returns:
        The point, or the name of a parameter whose choices do not include the configuration's.
    """
    point = {}
    for name, distribution in space.items():
        if distribution.single() or name not in configuration:
            continue
        value = configuration[name]
        if isinstance(distribution, CategoricalDistribution):
            if value not in distribution.choices:
                return name
            point[name] = value
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            point[name] = min(max(value, distribution.low), distribution.high)
    return point


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
