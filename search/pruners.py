"""Pruners of our own: which trials are not worth their remaining epochs?

They judge a trial at a few epochs, the rungs, as successive halving does, and not after each: every
look at a noisy curve is another chance to stop what would have been the best.
"""

from collections.abc import Collection
from statistics import NormalDist

import numpy as np
import torch
from optuna._gp import gp
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.curves import CurveModel, best_so_far, make_cube, normalised, observe
from studies.ownership import OwnedStorage


def rungs(epochs: int, reduction_factor: int, warmup_epochs: int) -> frozenset[int]:
    """The epochs after which a trial is judged: powers of the factor, beyond the warm-up.

    Never the last one, after which there is nothing to spare.
    """
    powers = []
    power = 1
    while power < epochs:
        powers.append(power)
        power *= reduction_factor
    return frozenset(power for power in powers if power > warmup_epochs)


def reached_by(epoch: int, study: Study, but: int) -> np.ndarray:
    """The best value up to an epoch of all trials that got as far but of one, by its number."""
    curves = [
        best_so_far(other)
        for other in study.get_trials(deepcopy=False)
        if other.number != but and len(other.intermediate_values) >= epoch
    ]
    # One that never reported a finite value is worse than any.
    return np.array(
        [curve[min(epoch, len(curve)) - 1] if len(curve) else -np.inf for curve in curves]
    )


class Reached:
    """The same as `reached_by`, asked of the database for these numbers alone.

    What has ended does not change: of the trials before the first one that has not, it is read
    once and kept.
    """

    def __init__(self, storage: OwnedStorage, study_id: int) -> None:
        self._storage, self._study_id = storage, study_id
        self._kept: dict[int, list[float]] = {}
        """By epoch."""
        self._first_open: dict[int, int] = {}
        """By epoch, the first trial of which nothing is kept."""

    def by(self, epoch: int, but: int) -> np.ndarray:
        """Of all trials that got as far but of one, by its identity; -inf if none was finite."""
        found = self._storage.reached(self._study_id, epoch, self._first_open.get(epoch, 0))
        kept = self._kept.setdefault(epoch, [])
        others: list[float] = []
        all_ended = True
        for trial in found:
            if all_ended and not trial.has_ended:
                all_ended = False
                self._first_open[epoch] = trial.trial_id
            if trial.reports < epoch or trial.trial_id == but:
                continue
            (kept if all_ended else others).append(-np.inf if trial.best is None else trial.best)
        if all_ended and found:
            self._first_open[epoch] = found[-1].trial_id + 1
        return np.array(kept + others, dtype=np.float64)


class MedianPruner(BasePruner):
    """Stop a trial that is below the median of all others that got as far.

    What is compared is the best value up to the epoch. Optuna's pruner of the name compares with
    complete trials alone: with parallel workers all of the first ones run to their end before any
    can be judged. Here whoever reports first is compared with those that have reported already, be
    they pruned since or still running (the median stopping rule of Golovin et al., "Google Vizier",
    2017, with the best instead of the mean).

    Args:
        startup_trials: others that must have reached an epoch before one is pruned there.
        rungs: the epochs at which a trial is judged.
        reached: what the others have reached, asked of the database itself; without it Optuna's
            copy of every trial is gone through.
    """

    def __init__(
        self, startup_trials: int, rungs: Collection[int], reached: Reached | None = None
    ) -> None:
        self._startup_trials = startup_trials
        self._rungs = rungs
        self._reached = reached

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after the epochs that it has reported."""
        epoch = len(trial.intermediate_values)
        if epoch not in self._rungs:
            return False
        if self._reached:
            others = self._reached.by(epoch, but=trial._trial_id)
        else:
            others = reached_by(epoch, study, but=trial.number)
        own = best_so_far(trial)
        return below_median(own[-1] if len(own) else -np.inf, others, self._startup_trials)


def below_median(value: float, others: np.ndarray, startup_trials: int) -> bool:
    """Whether a value is below the median of at least `startup_trials` others."""
    return len(others) >= max(startup_trials, 1) and bool(value < np.median(others))


class PredictivePruner(BasePruner):
    """Stop a trial whose chance to end among the best is small, by the sampler's curve model.

    The chance is that of a full trial with these parameters, given its own curve and all others,
    to end above the `better_than`-th best that another trial has reached or was heading for.

    Args:
        epochs: of a full trial.
        threshold: a trial with a smaller chance is stopped.
        better_than: k.
        startup_trials: with a value of any kind, before one is pruned.
        rungs: the epochs at which a trial is judged.
    """

    def __init__(
        self,
        epochs: int,
        threshold: float,
        better_than: int,
        startup_trials: int,
        rungs: Collection[int],
    ) -> None:
        self._epochs = epochs
        self._threshold = threshold
        self._better_than = better_than
        self._startup_trials = startup_trials
        self._rungs = rungs
        self._kernel: gp.GPRegressor | None = None

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after the epochs that it has reported."""
        if len(trial.intermediate_values) not in self._rungs:
            return False
        if not len(best_so_far(trial)):
            return True  # Never a finite value: worse than any.
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        others = [
            item
            for item in study.get_trials(deepcopy=False, states=states)
            if item.number != trial.number
            and item.params.keys() == trial.params.keys()
            and (len(best_so_far(item)) or item.state != TrialState.RUNNING)
        ]
        # Itself last.
        trials = [*others, trial]
        if len(others) < max(self._startup_trials, self._better_than):
            return False
        space = make_cube(trial.distributions)
        if space.dim == 0:
            return False
        parameters = [item.params for item in trials]
        # Whatever torch's default device is: the GPU is for training.
        with torch.device("cpu"):
            observed = observe(space, trials, parameters, self._epochs, fewest=2)
            if observed is None:
                return False
            model = CurveModel(space, observed.thinned(), start=self._kernel)
            self._kernel = model.regressor
            mean, variance = model.at_full_length(normalised(space, [trial.params]))
        rival = np.sort(observed.targets[:-1])[-self._better_than]
        end = NormalDist(float(mean[0]), max(float(variance[0]), 1e-12) ** 0.5)
        return 1 - end.cdf(rival) < self._threshold
