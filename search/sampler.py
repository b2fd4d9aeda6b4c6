"""A Gaussian process that learns from every epoch that was paid for, not from full trials alone.

Optuna's `GPSampler` fits complete trials only. With a pruner that is the smaller part of what is
known, and in a region where every trial is pruned it suggests the same point again and again. This
one fits the learning curves of all trials (`search/curves.py`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from optuna._gp import acqf, gp
from optuna._gp.search_space import SearchSpace
from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler
from optuna.samplers._gp.sampler import (
    _RELATIVE_PARAMS_KEY,
    _SYSTEM_ATTR_MAX_LENGTH,
    _get_params,
)
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from data.errors import UserError
from search.curves import (
    MOST_OBSERVED,
    Array,
    CurveModel,
    Observations,
    best_so_far,
    normalised,
    observe,
)
from search.space import checked_point
from studies.standing import UNREADABLE

SAME_POINT = 1e-3
"""Two points closer than this, in a unit cube, are one."""

RANDOM_CANDIDATES = 1024
STARTS = 5
"""So many of the best points are climbed from at a time."""
CANDIDATES_PER_ROUND = 256
NEAR_THE_BEST = (0.03, 0.1, 0.3)
"""Standard deviations of the steps from the best trials."""
FIRST_STEP = 0.1
"""Standard deviation in the first round of climbing."""
SHRINKAGE = 0.6
"""Of that, from round to round."""
ROUNDS = 8
NUMBERS_CHANGED, CATEGORIES_CHANGED = 0.5, 0.2
"""The chance of each coordinate to differ in a neighbour."""


class CurveGPSampler(GPSampler):
    """Expected improvement, by a Gaussian process over parameters and epochs.

    The improvement is that of a full trial over the best that any trial has reached or is expected
    to. Unfinished trials are observed as far as they got, and are besides taken to end as expected:
    parallel workers do not go to one place, and none goes again where a trial was pruned.

    It keeps no state of its own but the kernel's last parameters, from which the next fit starts:
    a new process suggests from the database alone.

    Args:
        seed: of this process.
        startup_trials: trials with a value of any kind (complete, pruned, diverged, or running
            and past their first epoch) before the first suggestion of the model.
        epochs: of a full trial.
        earlier: trials of an earlier study, mapped into this one's space. They count by as much as
            the two studies prove to be alike.
    """

    def __init__(
        self, seed: int, startup_trials: int, epochs: int, earlier: Sequence[FrozenTrial] = ()
    ) -> None:
        super().__init__(
            seed=seed, n_startup_trials=startup_trials, warn_independent_sampling=False
        )
        self._epochs = epochs
        self._earlier = tuple(earlier)
        self._kernel: gp.GPRegressor | None = None
        self._intersection_search_space = IntersectionSearchSpace(include_pruned=True)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest all parameters at once; nothing, and so random values, during the start."""
        if not search_space:
            return {}
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        known_trials = study._get_trials(deepcopy=False, states=states, use_cache=False)
        # A running trial's parameters are parsed from its attributes: once is enough.
        parsed = [(item, _parameters(item, search_space)) for item in known_trials]
        described = [pair for pair in parsed if search_space.keys() <= pair[1].keys()]
        trials = [item for item, _ in described]
        parameters = [values for _, values in described]
        space = SearchSpace(search_space)
        # Whatever torch's default device is: the GPU is for training.
        with torch.device("cpu"):
            observed = observe(space, trials, parameters, self._epochs, self._n_startup_trials)
            if observed is None:
                return {}
            model = CurveModel(
                space, observed.thinned(), self._observe_earlier(space, search_space), self._kernel
            )
            self._kernel = model.regressor
            points = normalised(space, parameters)
            silent = [
                item.state == TrialState.RUNNING and not len(best_so_far(item)) for item in trials
            ]
            unfinished = model.observed.points[~model.observed.complete]
            model.add_expected(np.vstack([unfinished, points[silent]]))
            point = most_promising(model, space, points, self._rng.rng)
        if point is None:
            return {}
        suggested = space.get_unnormalized_param(point)
        # Other workers see the whole point before this one has asked for each parameter.
        text = json.dumps(suggested)
        for part, start in enumerate(range(0, len(text), _SYSTEM_ATTR_MAX_LENGTH)):
            study._storage.set_trial_system_attr(
                trial._trial_id,
                f"{_RELATIVE_PARAMS_KEY}:{part}",
                text[start : start + _SYSTEM_ATTR_MAX_LENGTH],
            )
        return suggested

    def _observe_earlier(
        self, space: SearchSpace, parameters: Mapping[str, BaseDistribution]
    ) -> Observations | None:
        trials = [item for item in self._earlier if parameters.keys() <= item.params.keys()]
        values = [item.params for item in trials]
        observed = observe(space, trials, values, self._epochs, fewest=2)
        return observed.thinned(MOST_OBSERVED // 2) if observed else None


def _parameters(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Optuna's, but none of a trial in whose row or attributes something else was left."""
    try:
        values = _get_params(trial)
        checked_point(space, {name: values[name] for name in space if name in values})
    except (UserError, *UNREADABLE):
        return {}
    return values


def most_promising(
    model: CurveModel, space: SearchSpace, taken: Array, random: np.random.RandomState
) -> Array | None:
    """The point, shape (parameters,), at which a full trial improves most, as is expected.

    None if all that were looked at are taken, as happens in a small space of choices.

    Random points and neighbours of the best trials are compared, then neighbours of the best of
    those, ever closer. In a space of numbers and choices alike this finds what Optuna's gradient
    ascent does, in a tenth of the time.

    Args:
        taken: points that have been tried or are being tried, shape (trials, parameters).
    """
    from scipy.spatial import KDTree  # Not needed by workers with another sampler.

    tree = KDTree(taken)

    def acquisition(points: Array) -> Array:
        mean, variance = model.at_full_length(points)
        values: Array = acqf.logei(mean, variance + 1e-12, model.best_expected).numpy()
        distances, _ = tree.query(points, p=np.inf, distance_upper_bound=SAME_POINT)
        return np.where(np.isfinite(distances), -np.inf, values)

    expected = model.at_full_length(model.observed.points)[0].numpy()
    best = model.observed.points[np.argsort(-expected)[:STARTS]]
    near = [neighbours(space, best, step, CANDIDATES_PER_ROUND, random) for step in NEAR_THE_BEST]
    points = np.vstack([space.sample_normalized_params(RANDOM_CANDIDATES, random), *near])
    values = acquisition(points)
    step = FIRST_STEP
    for _ in range(ROUNDS):
        top = np.argsort(-values)[:STARTS]
        near_top = neighbours(space, points[top], step, CANDIDATES_PER_ROUND, random)
        points = np.vstack([points[top], near_top])
        values = np.concatenate([values[top], acquisition(near_top)])
        step *= SHRINKAGE
    winner = np.argmax(values)
    return points[winner] if np.isfinite(values[winner]) else None


def neighbours(
    space: SearchSpace, points: Array, step: float, count: int, random: np.random.RandomState
) -> Array:
    """Points, shape (count, parameters), that differ a little from some of those given.

    Steps beyond the space end on its bounds, where the best is more often than chance has it.

    Args:
        step: standard deviation in the unit cube; a category becomes any.
    """
    origins = points[random.randint(len(points), size=count)]
    moved = np.clip(origins + step * random.standard_normal(origins.shape), 0.0, 1.0)
    for index, choices in zip(
        space.discrete_indices, space.get_choices_of_discrete_params(), strict=True
    ):
        if space.is_categorical[index]:
            moved[:, index] = random.choice(choices, size=count)
        else:
            right = np.clip(np.searchsorted(choices, moved[:, index]), 1, len(choices) - 1)
            left_is_nearer = moved[:, index] - choices[right - 1] < choices[right] - moved[:, index]
            moved[:, index] = choices[right - left_is_nearer]
    chance = np.where(space.is_categorical, CATEGORIES_CHANGED, NUMBERS_CHANGED)
    changed = random.random_sample(moved.shape) < chance
    near: Array = np.where(changed, moved, origins)
    return near
