"""Samplers and pruners by the names that a study file uses."""

import hashlib
from collections.abc import Sequence

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from search.pruners import MedianPruner, PredictivePruner, Reached, rungs
from search.sampler import CurveGPSampler
from studies.config import PrunerSettings, SamplerSettings
from studies.storage import quiet_optuna

GP_STARTUP_TRIALS = 4
TPE_STARTUP_TRIALS = 10  # Optuna's default


def make_sampler(
    settings: SamplerSettings, seed: int, epochs: int, earlier: Sequence[FrozenTrial] = ()
) -> BaseSampler:
    """The sampler that suggests parameters.

    A grid's points are enqueued when the study is created, so that its sampler has nothing to do.

    Args:
        seed: of this process: with the same seed, two workers would suggest the same.
        epochs: of a full trial.
        earlier: trials of an earlier study, to be weighed (gp); see `search.warm.earlier_trials`.
    """
    with quiet_optuna():
        if settings.name == "gp":
            startup_trials = settings.startup_trials or GP_STARTUP_TRIALS
            return CurveGPSampler(seed, startup_trials, epochs, earlier)
        if settings.name == "tpe":
            return TPESampler(
                seed=seed, n_startup_trials=settings.startup_trials or TPE_STARTUP_TRIALS
            )
        return RandomSampler(seed=seed)


def make_pruner(
    settings: PrunerSettings, epochs: int, reached: Reached | None = None
) -> BasePruner:
    """The pruner that stops hopeless trials; a step is an epoch.

    Args:
        reached: the accuracies of the study in SQL, for a pruner that needs nothing else.
    """
    judged = rungs(epochs, settings.reduction_factor, settings.warmup_epochs)
    if settings.name == "median":
        return MedianPruner(settings.startup_trials, judged, reached)
    if settings.name == "predictive":
        return PredictivePruner(
            epochs,
            settings.threshold,
            settings.better_than,
            settings.startup_trials,
            judged,
        )
    if settings.name == "asha":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=settings.reduction_factor)
    if settings.name == "hyperband":
        return HyperbandPruner(
            min_resource=1, max_resource=epochs, reduction_factor=settings.reduction_factor
        )
    return NopPruner()


def derived_seed(*parts: object) -> int:
    """A seed of 32 bits that depends on all parts, and is the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
