"""A Gaussian process that learns from every epoch that was paid for, not from full trials alone.

Optuna's `GPSampler` fits complete trials only. With a pruner that is the smaller part of what is
known, and in a region where every trial is pruned it suggests the same point again and again. This
one takes a pruned or running trial at the value that it was heading for.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna._gp import acqf, gp
from optuna._gp.search_space import SearchSpace
from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler
from optuna.samplers._gp.sampler import (
    _MAX_QMC_SEED_VALUE,
    _RELATIVE_PARAMS_KEY,
    _SYSTEM_ATTR_MAX_LENGTH,
    _get_params,
)
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

FARTHEST_OUTLIER = 2.0
"""How far below the median a value counts, in distances from the median to the best."""
SAME_POINT = 1e-6
"""Two points closer than this, in a unit cube, are one."""

Array = NDArray[np.float64]


class CurveGPSampler(GPSampler):
    """Optuna's Gaussian process and acquisition, fitted to learning curves instead of results.

    The target of an unfinished trial is its best value so far and the median of what complete
    trials still gained from that epoch on. Values far below the others are raised
    (`raise_outliers`), so that a diverged trial does not flatten the differences that matter. A
    running trial counts as pending besides, so that parallel workers do not go to one place.

    It keeps no state of its own but the kernel's last parameters, from which the next fit starts:
    a new process suggests from the database alone.

    Args:
        seed: of this process.
        startup_trials: trials with a value of any kind (complete, pruned, diverged, or running
            and past their first epoch) before the first suggestion of the model.
        epochs: of a full trial.
        earlier: trials of an earlier study, mapped into this one's space.
    """

    def __init__(
        self, seed: int, startup_trials: int, epochs: int, earlier: Sequence[FrozenTrial] = ()
    ) -> None:
        super().__init__(
            seed=seed, n_startup_trials=startup_trials, warn_independent_sampling=False
        )
        self._epochs = epochs
        self._earlier = tuple(earlier)
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
        parameters_of = {item.number: _get_params(item) for item in known_trials}
        trials = [
            item
            for item in known_trials
            if search_space.keys() <= parameters_of[item.number].keys()
        ]
        values = expected_values(trials, self._epochs)
        known = ~np.isnan(values)
        if known.sum() < self._n_startup_trials or not np.isfinite(values).any():
            return {}
        running = np.array([item.state == TrialState.RUNNING for item in trials])
        complete = np.array([item.state == TrialState.COMPLETE for item in trials])
        space = SearchSpace(search_space)
        # Whatever torch's default device is: the GPU is for training.
        with torch.device("cpu"):
            points = space.get_normalized_params(
                trials, [parameters_of[item.number] for item in trials]
            )
            point = self._next_point(
                space, points[known], values[known], complete[known], points[running]
            )
        if (np.abs(points - point).max(axis=1) < SAME_POINT).any():
            return {}
        parameters = space.get_unnormalized_param(point)
        # Other workers see the whole point before this one has asked for each parameter.
        text = json.dumps(parameters)
        for part, start in enumerate(range(0, len(text), _SYSTEM_ATTR_MAX_LENGTH)):
            study._storage.set_trial_system_attr(
                trial._trial_id,
                f"{_RELATIVE_PARAMS_KEY}:{part}",
                text[start : start + _SYSTEM_ATTR_MAX_LENGTH],
            )
        return parameters

    def _next_point(
        self, space: SearchSpace, points: Array, values: Array, complete: Array, pending: Array
    ) -> Array:
        """The point of the unit cube with the greatest expected improvement."""
        raised = raise_outliers(values)
        targets = (raised - raised.mean()) / max(raised.std(), 1e-10)
        cached = self._gprs_cache_list[0] if self._gprs_cache_list else None
        if cached is not None and len(cached.inverse_squared_lengthscales) != space.dim:
            cached = None
        regressor = gp.fit_kernel_params(
            X=points,
            Y=targets,
            is_categorical=space.is_categorical,
            log_prior=self._log_prior,
            minimum_noise=self._minimum_noise,
            deterministic_objective=False,
            gpr_cache=cached,
        )
        self._gprs_cache_list = [regressor]
        # What was reached, not what a trial might have reached.
        threshold = targets[complete].max() if complete.any() else targets.max()
        acquisition: acqf.BaseAcquisitionFunc
        if len(pending):
            acquisition = acqf.qLogEI(
                gpr=regressor,
                search_space=space,
                threshold=threshold,
                n_qmc_samples=self._n_qmc_samples_qei,
                qmc_seed=self._rng.rng.randint(_MAX_QMC_SEED_VALUE),
                normalized_params_of_running_trials=pending,
            )
        else:
            acquisition = acqf.LogEI(gpr=regressor, search_space=space, threshold=threshold)
        return self._optimize_acqf(acquisition, points[np.argmax(targets), np.newaxis])


def expected_values(trials: Sequence[FrozenTrial], epochs: int) -> Array:
    """What each trial has reached or was heading for, in the unit of what it reports.

    Returns:
        shape (trials,): NaN for a running trial without a report, of which nothing is known;
        -inf for one that ended without a finite report: it diverged in its first epoch.
    """
    curves = [best_so_far(trial) for trial in trials]
    full = [
        curve[:epochs]
        for trial, curve in zip(trials, curves, strict=True)
        if trial.state == TrialState.COMPLETE and len(curve) >= epochs
    ]
    # By the number of epochs that a trial has had.
    gains = np.median([curve[-1] - curve for curve in full], axis=0) if full else np.zeros(epochs)
    values = np.empty(len(trials))
    for index, (trial, curve) in enumerate(zip(trials, curves, strict=True)):
        if trial.state == TrialState.COMPLETE:
            assert trial.value is not None
            values[index] = trial.value
        elif len(curve):
            values[index] = curve[-1] + gains[min(len(curve), epochs) - 1]
        else:
            values[index] = np.nan if trial.state == TrialState.RUNNING else -np.inf
    return values


def best_so_far(trial: FrozenTrial) -> Array:
    """The best value reported up to each epoch, from the first that is finite on."""
    reports = np.array(
        [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
    )
    finite = np.where(np.isfinite(reports), reports, -np.inf)
    best = np.maximum.accumulate(finite) if len(finite) else finite
    return best if len(best) and np.isfinite(best[-1]) else np.empty(0)


def raise_outliers(values: Array) -> Array:
    """Bring values that are infinite, or far below the median, to the edge of what matters.

    The edge is `FARTHEST_OUTLIER` times as far below the median as the best is above it.

    Args:
        values: shape (trials,), none NaN, at least one finite.
    """
    finite = np.isfinite(values)
    bounded = np.clip(values, values[finite].min(), values[finite].max())
    median = np.median(bounded)
    distance = bounded.max() - median
    if distance == 0:
        return bounded
    raised: Array = np.maximum(bounded, median - FARTHEST_OUTLIER * distance)
    return raised
