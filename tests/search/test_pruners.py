import math

import numpy as np
import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import Trial, TrialState

from search.pruners import MedianPruner, PredictivePruner, below_median, rungs

EPOCHS = 4


def make_study(pruner: BasePruner) -> Study:
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(direction="maximize", pruner=pruner, sampler=sampler)


def run(study: Study, *accuracies: float) -> list[bool]:
    """Report accuracies to a new trial, and what the pruner said after each."""
    trial = study.ask()
    decisions = [report(trial, epoch, value) for epoch, value in enumerate(accuracies, start=1)]
    study.tell(trial, max(accuracies))
    return decisions


def report(trial: Trial, epoch: int, accuracy: float) -> bool:
    trial.report(accuracy, epoch)
    return trial.should_prune()


def test_trials_are_judged_at_powers_of_the_factor_but_not_after_the_last_epoch() -> None:
    assert rungs(epochs=10, reduction_factor=3, warmup_epochs=0) == {1, 3, 9}
    assert rungs(epochs=9, reduction_factor=3, warmup_epochs=1) == {3}
    assert rungs(epochs=10, reduction_factor=2, warmup_epochs=2) == {4, 8}
    assert rungs(epochs=1, reduction_factor=2, warmup_epochs=0) == set()


def test_pruners_judge_at_rungs_alone() -> None:
    study = make_study(MedianPruner(startup_trials=1, rungs={1, 3}))
    run(study, 0.5, 0.6, 0.7)
    assert run(study, 0.5, 0.1, 0.1) == [False, False, True]


def test_the_median_pruner_spares_the_first_trials_and_epochs() -> None:
    study = make_study(MedianPruner(startup_trials=2, rungs={2, 3}))
    assert run(study, 0.9, 0.9, 0.9) == [False, False, False]
    assert run(study, 0.8, 0.8, 0.8) == [False, False, False]
    assert run(study, 0.1, 0.1, 0.1) == [False, True, True]


def test_the_median_pruner_compares_with_running_trials() -> None:
    study = make_study(MedianPruner(startup_trials=1, rungs={1, 2, 3}))
    first, second, third = study.ask(), study.ask(), study.ask()
    assert not report(first, 1, 0.5)
    assert report(second, 1, 0.4)
    assert not report(third, 1, 0.6)


def test_the_median_pruner_compares_with_pruned_trials() -> None:
    study = make_study(MedianPruner(startup_trials=1, rungs={1, 2, 3}))
    for value in (0.5, 0.3):
        trial = study.ask()
        trial.report(value, 1)
        study.tell(trial, state=TrialState.PRUNED)
    assert report(study.ask(), 1, 0.39)
    # The others are now 0.3, 0.39 and 0.5.
    assert not report(study.ask(), 1, 0.4)


def test_the_median_pruner_compares_at_the_epoch_that_was_reached() -> None:
    study = make_study(MedianPruner(startup_trials=1, rungs={1, 2, 3}))
    run(study, 0.2, 0.5, 0.9)
    trial = study.ask()
    assert not report(trial, 1, 0.3)
    assert report(trial, 2, 0.4)


def test_a_trial_that_never_had_a_finite_value_is_below_all() -> None:
    assert below_median(-math.inf, np.array([0.1]), startup_trials=1)
    assert not below_median(0.1, np.array([-math.inf, -math.inf]), startup_trials=1)


def predictive(better_than: int = 1) -> PredictivePruner:
    return PredictivePruner(EPOCHS, 0.1, better_than, startup_trials=1, rungs={1, 2, 3})


def with_known_slope(study: Study) -> None:
    """Full trials that are the better, the greater x is."""
    for x in np.linspace(0.0, 1.0, 9):
        study.add_trial(
            optuna.create_trial(
                value=0.2 + 0.6 * x,
                params={"x": float(x)},
                distributions={"x": optuna.distributions.FloatDistribution(0.0, 1.0)},
                intermediate_values={
                    epoch: (0.2 + 0.6 * x) * epoch / EPOCHS for epoch in range(1, EPOCHS + 1)
                },
            )
        )


@pytest.mark.parametrize(("x", "pruned"), [(0.1, True), (0.5, True), (1.0, False)])
def test_the_predictive_pruner_stops_what_cannot_end_among_the_best(x: float, pruned: bool) -> None:
    study = make_study(predictive())
    with_known_slope(study)
    study.enqueue_trial({"x": x})
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    assert report(trial, 1, (0.2 + 0.6 * x) / EPOCHS) is pruned


def test_the_predictive_pruner_asks_for_the_k_best() -> None:
    study = make_study(predictive(better_than=5))
    with_known_slope(study)
    study.enqueue_trial({"x": 0.5})
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    assert not report(trial, 1, 0.5 / EPOCHS)


def test_the_predictive_pruner_has_nothing_to_say_without_others() -> None:
    study = make_study(predictive())
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    assert not report(trial, 1, 0.1)


def test_the_predictive_pruner_leaves_trials_without_parameters_alone() -> None:
    study = make_study(predictive())
    run(study, 0.9, 0.9)
    assert run(study, 0.1, 0.1) == [False, False]


def test_the_predictive_pruner_stops_a_trial_without_a_number_and_heeds_no_other() -> None:
    study = make_study(predictive(better_than=3))
    for x in (0.2, 0.8):
        study.enqueue_trial({"x": x})
    silent, spared = study.ask(), study.ask()
    for trial in (silent, spared):
        trial.suggest_float("x", 0.0, 1.0)
    assert report(silent, 1, math.nan)
    with_known_slope(study)
    assert report(silent, 2, math.nan)
    assert not report(spared, 1, 0.2 + 0.6 * 0.8)
