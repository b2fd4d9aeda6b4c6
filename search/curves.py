"""What learning curves say of the space: where trials were heading, and where others would end.

The model is Optuna's Gaussian process over the parameters and, as one more coordinate, the
logarithm of the epoch that a trial got to (as in Swersky, Snoek and Adams, "Freeze-Thaw Bayesian
Optimization", 2014, and Klein et al., "Fast Bayesian Optimization of Machine Learning
Hyperparameters on Large Datasets", 2017). A trial that ended early is so a less certain witness of
what its parameters are worth, by as much as the curves themselves show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna._gp import gp, prior
from optuna._gp.search_space import SearchSpace
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

FARTHEST_OUTLIER = 2.0
"""How far below the median a value counts, in distances from the median to the best."""

MOST_OBSERVED = 200
"""Trials of a study that the model is fitted to: its time grows with the cube of their number."""

Array = NDArray[np.float64]


def best_so_far(trial: FrozenTrial) -> Array:
    """The best value reported up to each epoch; -inf before the first that is finite.

    Returns:
        shape (epochs reported,); empty if none is finite.
    """
    reports = np.array(
        [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
    )
    finite = np.where(np.isfinite(reports), reports, -np.inf)
    best = np.maximum.accumulate(finite) if len(finite) else finite
    return best if len(best) and np.isfinite(best[-1]) else np.empty(0)


def expected_values(trials: Sequence[FrozenTrial], epochs: int) -> Array:
    """What each trial has reached or was heading for, in the unit of what it reports.

    That of an unfinished trial is its best value so far and the median of what complete trials
    still gained from that epoch on.

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
    gains = _median_gains(full, epochs)
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


def _median_gains(curves: Sequence[Array], epochs: int) -> Array:
    """What full curves still gained after each epoch, shape (epochs,); 0 where none says."""
    gains = np.zeros(epochs)
    for epoch in range(epochs):
        known = [curve[-1] - curve[epoch] for curve in curves if np.isfinite(curve[epoch])]
        if known:
            gains[epoch] = np.median(known)
    return gains


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


@dataclass(frozen=True, slots=True)
class Observations:
    """Trials as the model sees them."""

    points: Array
    """shape (trials, parameters), in the unit cube of the space."""
    epochs: Array
    """shape (trials,): how far each got, 0 for epoch 1 and 1 for a full trial."""
    targets: Array
    """shape (trials,): expected values, outliers raised, of mean 0 and standard deviation 1."""
    complete: NDArray[np.bool_]
    """shape (trials,): whether the trial is."""

    def thinned(self, most: int = MOST_OBSERVED) -> "Observations":
        """About so many: the better half of them, and an even sample of all that are worse.

        The last one is always among them, if need be as one more.
        """
        if len(self.targets) <= most:
            return self
        order = np.argsort(-self.targets, kind="stable")
        half = most // 2
        worse = np.linspace(half, len(order) - 1, most - half).round().astype(int)
        kept = np.union1d(np.concatenate([order[:half], order[worse]]), [len(order) - 1])
        return Observations(
            self.points[kept], self.epochs[kept], self.targets[kept], self.complete[kept]
        )


def observe(
    space: SearchSpace,
    trials: Sequence[FrozenTrial],
    parameters: Sequence[Mapping[str, Any]],
    epochs: int,
    fewest: int,
) -> Observations | None:
    """What is known of the space from trials of one study; None if it is of too few.

    Args:
        parameters: of each trial.
        epochs: of a full trial.
        fewest: trials with a value of any kind.
    """
    values = expected_values(trials, epochs)
    known = [int(index) for index in np.flatnonzero(~np.isnan(values))]
    if len(known) < max(fewest, 1) or not np.isfinite(values[known]).any():
        return None
    raised = raise_outliers(values[known])
    complete = np.array([trials[index].state == TrialState.COMPLETE for index in known])
    trained = [len(best_so_far(trials[index])) for index in known]
    return Observations(
        points=normalised(space, [parameters[index] for index in known]),
        epochs=np.where(complete, 1.0, [_on_log_scale(count, epochs) for count in trained]),
        targets=(raised - raised.mean()) / max(raised.std(), 1e-10),
        complete=complete,
    )


def normalised(space: SearchSpace, parameters: Sequence[Mapping[str, Any]]) -> Array:
    """Points of the unit cube, shape (points, parameters)."""
    # It reads the parameters from the second argument; of the first it takes the length.
    placeholders: list[Any] = [None] * len(parameters)
    points: Array = space.get_normalized_params(placeholders, [dict(item) for item in parameters])
    return points


def _on_log_scale(trained: int, epochs: int) -> float:
    return math.log(min(max(trained, 1), epochs)) / math.log(epochs) if epochs > 1 else 1.0


class CurveModel:
    """A Gaussian process fitted to the trials of this study and, maybe, of an earlier one.

    Trials of the earlier study differ in a coordinate of their own, whose fitted length scale says
    how much they count.
    """

    def __init__(
        self,
        space: SearchSpace,
        observed: Observations,
        earlier: Observations | None = None,
        start: gp.GPRegressor | None = None,
    ) -> None:
        """Fit the kernel's parameters, from those of `start` on."""
        self.observed = observed
        self.best_expected = float(observed.targets.max())
        """The greatest target that is observed, or expected of what was added."""
        self._columns = 1 if earlier is None else 2
        rows = np.column_stack([observed.points, self._extra(observed.epochs, 0.0)])
        targets = observed.targets
        if earlier is not None:
            of_earlier = np.column_stack([earlier.points, self._extra(earlier.epochs, 1.0)])
            rows = np.vstack([rows, of_earlier])
            targets = np.concatenate([targets, earlier.targets])
        categorical = np.concatenate([space.is_categorical, np.zeros(self._columns, dtype=bool)])
        if start is not None and len(start.inverse_squared_lengthscales) != rows.shape[1]:
            start = None
        self.regressor = gp.fit_kernel_params(
            X=rows,
            Y=targets,
            is_categorical=categorical,
            log_prior=prior.default_log_prior,
            minimum_noise=prior.DEFAULT_MINIMUM_NOISE_VAR,
            deterministic_objective=False,
            gpr_cache=start,
        )

    def _extra(self, epochs: Array, study: float) -> Array:
        return np.column_stack([epochs, np.full(len(epochs), study)])[:, : self._columns]

    def add_expected(self, points: Array) -> None:
        """Take full trials at points, shape (points, parameters), to end as expected.

        Ginsbourger, Le Riche and Carraro, "Kriging Is Well-Suited to Parallelize Optimization",
        2010: the Kriging believer.
        """
        if not len(points):
            return
        mean, _ = self.at_full_length(points)
        self.regressor.append_running_data(self._full(points), mean)
        self.best_expected = max(self.best_expected, float(mean.max()))

    def at_full_length(self, points: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the targets that full trials would have, shape (points,) each."""
        with torch.no_grad():
            return self.regressor.posterior(self._full(points))

    def _full(self, points: Array) -> torch.Tensor:
        extra = self._extra(np.ones(len(points)), 0.0)
        return torch.from_numpy(np.column_stack([points, extra]))


def make_cube(space: Mapping[str, BaseDistribution]) -> SearchSpace:
    """The unit cube of a space's parameters that are not fixed."""
    return SearchSpace({name: item for name, item in space.items() if not item.single()})
