import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.curves import MOST_OBSERVED
from search.objective import suggest
from search.sampler import CurveGPSampler
from tests.search.line import EPOCHS, LINE, complete, pruned

MIXED = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "units": IntDistribution(8, 512, log=True),
    "optimizer": CategoricalDistribution(["sgd", "adam", "nadam"]),
    "width": CategoricalDistribution([8]),
}


def make_study(sampler: BaseSampler | None = None) -> Study:
    return optuna.create_study(sampler=sampler or make_sampler(), direction="maximize")


def make_sampler(seed: int = 0, startup_trials: int = 4) -> CurveGPSampler:
    return CurveGPSampler(seed, startup_trials, EPOCHS)


def suggested_by_the_model(study: Study) -> bool:
    """Whether the next suggestion is the model's and not a random one."""
    asked = study.ask(dict(LINE))
    assert 0.0 <= asked.params["x"] <= 1.0
    return is_by_the_model(study.get_trials()[asked.number])


def is_by_the_model(trial: FrozenTrial) -> bool:
    return any("relative_params" in name for name in trial.system_attrs)


def in_a_bad_region(sampler: BaseSampler) -> list[float]:
    """What is suggested when complete trials rise to the right, where all others were pruned."""
    study = make_study(sampler)
    for x in np.linspace(0.0, 0.7, 10):
        complete(study, float(x), 0.5 + 0.3 * x)
    for x in np.linspace(0.05, 0.65, 6):
        pruned(study, float(x), 0.4 * (0.5 + 0.3 * x))
    for x in np.linspace(0.76, 1.0, 6):
        pruned(study, float(x), 0.1)
    suggested = []
    for _ in range(8):
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        suggested.append(x)
        value = 0.4 * (0.5 + 0.3 * x) if x < 0.75 else 0.1
        trial.report(value, 1)
        study.tell(trial, state=TrialState.PRUNED)
    return suggested


@pytest.mark.parametrize("seed", range(3))
def test_a_region_in_which_trials_were_pruned_is_left(seed: int) -> None:
    suggested = in_a_bad_region(make_sampler(seed))
    assert sum(x > 0.75 for x in suggested) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_optuna_s_own_goes_on_in_the_region_in_which_trials_were_pruned(seed: int) -> None:
    suggested = in_a_bad_region(GPSampler(seed=seed, n_startup_trials=4))
    assert sum(x > 0.75 for x in suggested) > 4


def test_pruned_trials_count_as_a_start() -> None:
    study = make_study()
    complete(study, 0.1, 0.3)
    complete(study, 0.5, 0.8)
    for x in (0.2, 0.9):
        pruned(study, x, 0.1)
    assert suggested_by_the_model(study)


def test_a_seed_and_a_database_decide_the_suggestion(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    first = optuna.create_study(storage=storage, study_name="study", direction="maximize")
    for x in (0.1, 0.4, 0.6, 0.9):
        complete(first, x, 0.8 - (x - 0.5) ** 2)
    pruned(first, 0.2, 0.1)
    suggested = []
    for _ in range(2):
        # As a new process does: all that it knows is the database.
        study = optuna.load_study(storage=storage, study_name="study", sampler=make_sampler(7))
        trial = study.ask(dict(LINE))
        suggested.append(trial.params["x"])
        study.tell(trial, state=TrialState.FAIL)
    assert suggested[0] == suggested[1]


def test_mixed_parameters_are_suggested_within_their_space() -> None:
    study = make_study()
    for number in range(12):
        trial = study.ask()
        parameters = suggest(trial, MIXED)
        assert 1e-4 <= parameters["rate"] <= 1.0
        assert isinstance(parameters["units"], int)
        assert 8 <= parameters["units"] <= 512
        assert parameters["optimizer"] in ("sgd", "adam", "nadam")
        assert parameters["width"] == 8
        trial.report(parameters["rate"], 1)
        if number % 3:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, parameters["rate"])


def nothing_but_pruned(study: Study) -> None:
    for x in (0.1, 0.3, 0.5, 0.7, 0.9):
        pruned(study, x, 0.1 + 0.1 * x)


def all_equal(study: Study) -> None:
    for x in (0.1, 0.3, 0.5, 0.7, 0.9):
        complete(study, x, 0.5)


def without_a_number(study: Study) -> None:
    for x, value in ((0.1, math.nan), (0.3, math.inf), (0.5, -math.inf), (0.7, 0.4), (0.9, 0.5)):
        pruned(study, x, 0.1, value)
    pruned(study, 0.2, math.nan)
    pruned(study, 0.4)
    complete(study, 0.6, 0.5)


@pytest.mark.parametrize("fill", [nothing_but_pruned, all_equal, without_a_number])
def test_it_suggests_whatever_the_trials_were(fill: Callable[[Study], None]) -> None:
    study = make_study()
    fill(study)
    assert suggested_by_the_model(study)


def test_sixteen_that_run_at_once_differ_and_none_is_left_to_chance() -> None:
    study = make_study()
    for x in (0.1, 0.4, 0.6, 0.9):
        complete(study, x, 0.8 - (x - 0.5) ** 2)
    for _ in range(16):
        study.ask(dict(LINE))
    suggested = study.get_trials()[4:]
    assert all(is_by_the_model(trial) for trial in suggested)
    assert min(np.diff(sorted(trial.params["x"] for trial in suggested))) > 1e-4


def test_points_of_a_small_grid_are_not_repeated_in_vain() -> None:
    space = {"a": CategoricalDistribution([1, 2, 3]), "b": CategoricalDistribution([1, 2, 3, 4])}
    study = make_study()
    tried = set()
    for _ in range(4 + 12):  # Four random ones, and all twelve points if no model repeats one.
        trial = study.ask(dict(space))
        tried.add((trial.params["a"], trial.params["b"]))
        study.tell(trial, 0.1 * trial.params["a"] + 0.1 * trial.params["b"])
    assert len(tried) == 12
    # Nothing is left to try: a random point is tried again.
    study.ask(dict(space))


def earlier_study() -> list[FrozenTrial]:
    """Complete trials of another study, whose best is at 0.8."""
    study = make_study()
    for x in np.linspace(0.0, 1.0, 15):
        complete(study, float(x), 0.9 - 2 * (x - 0.8) ** 2)
    return study.get_trials()


@pytest.mark.parametrize("seed", range(3))
def test_trials_of_an_earlier_study_show_the_way(seed: int) -> None:
    sampler = CurveGPSampler(seed, 4, EPOCHS, earlier_study())
    study = make_study(sampler)
    for x in (0.1, 0.4, 0.6, 1.0):
        complete(study, x, 0.8 - 2 * (x - 0.8) ** 2)
    assert study.ask(dict(LINE)).params["x"] == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_an_earlier_study_that_contradicts_is_outweighed(seed: int) -> None:
    sampler = CurveGPSampler(seed, 4, EPOCHS, earlier_study())
    study = make_study(sampler)
    for x in np.linspace(0.02, 0.98, 11):
        complete(study, float(x), 0.9 - 2 * (x - 0.2) ** 2)
    assert study.ask(dict(LINE)).params["x"] == pytest.approx(0.2, abs=0.15)


def test_a_large_study_is_thinned() -> None:
    sampler = make_sampler()
    study = make_study(sampler)
    for x in np.linspace(0.0, 1.0, 600):
        if int(600 * x) % 3:
            pruned(study, float(x), 0.4 - (x - 0.5) ** 2)
        else:
            complete(study, float(x), 0.8 - (x - 0.5) ** 2)
    assert study.ask(dict(LINE)).params["x"] == pytest.approx(0.5, abs=0.1)
    assert sampler._kernel is not None
    assert len(sampler._kernel._X_train) <= MOST_OBSERVED + 1
