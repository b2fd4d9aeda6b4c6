"""Pruners of our own: which trials are not worth their remaining epochs?

They judge a trial at a few epochs, the rungs, as successive halving does, and not after each: every
look at a noisy curve is another chance to stop what would have been the best.
"""

from collections.abc import Collection, Sequence
from statistics import NormalDist

import numpy as np
import torch
from optuna._gp import gp
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.curves import CurveModel, best_so_far, make_cube, normalised, observe


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
    """

    def __init__(self, startup_trials: int, rungs: Collection[int]) -> None:
        self._startup_trials = startup_trials
        self._rungs = rungs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after the epochs that it has reported."""
        epoch = len(trial.intermediate_values)
        if epoch not in self._rungs:
            return False
        others = [
            best_so_far(other)
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and len(other.intermediate_values) >= epoch
        ]
        own = best_so_far(trial)
        return below_median(own[-1] if len(own) else -np.inf, others, epoch, self._startup_trials)


def below_median(
    value: float, others: Sequence[np.ndarray], epoch: int, startup_trials: int
) -> bool:
    """Whether a value is below the median of what at least `startup_trials` others had by then."""
    if len(others) < max(startup_trials, 1):
        return False
    # One that never reported a finite value is worse than any.
    reached = [curve[min(epoch, len(curve)) - 1] if len(curve) else -np.inf for curve in others]
    return bool(value < np.median(reached))


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
