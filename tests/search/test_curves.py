import math

import numpy as np
import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState

from search.curves import (
    CurveModel,
    Observations,
    expected_values,
    make_cube,
    observe,
    raise_outliers,
)
from tests.search.line import EPOCHS, LINE, add, complete, pruned


def make_study() -> Study:
    return optuna.create_study(direction="maximize")


def observed(study: Study) -> Observations:
    trials = study.get_trials()
    found = observe(make_cube(LINE), trials, [trial.params for trial in trials], EPOCHS, fewest=1)
    assert found is not None
    return found


def test_an_unfinished_trial_counts_at_the_value_it_was_heading_for() -> None:
    study = make_study()
    complete(study, 0.1, 0.4)
    complete(study, 0.2, 0.8)
    pruned(study, 0.3, 0.1, 0.3, 0.2)
    pruned(study, 0.4)
    study.ask(dict(LINE))
    values = expected_values(study.get_trials(), EPOCHS)
    # From the third epoch on, the two gained 7/9 of 0.2 and of 0.4.
    assert values[2] == pytest.approx(0.3 + 7 / 9 * 0.3)
    assert values[3] == -math.inf
    assert math.isnan(values[4])


def test_a_late_first_number_promises_no_more_than_the_others() -> None:
    study = make_study()
    add(study, TrialState.COMPLETE, 0.1, math.nan, *np.linspace(0.3, 0.5, EPOCHS - 1))
    complete(study, 0.2, 0.6)
    pruned(study, 0.3, 0.01)
    values = expected_values(study.get_trials(), EPOCHS)
    assert values[2] == pytest.approx(0.01 + 0.3)


def test_a_value_far_below_the_others_is_raised() -> None:
    raised = raise_outliers(np.array([0.1, 0.7, 0.8, 0.9, -math.inf]))
    assert raised.tolist() == pytest.approx([0.3, 0.7, 0.8, 0.9, 0.3])


def test_how_far_a_trial_got_is_on_a_logarithmic_scale() -> None:
    study = make_study()
    complete(study, 0.1, 0.5)
    pruned(study, 0.2, 0.3)
    pruned(study, 0.3, 0.3, 0.3, 0.3)
    assert observed(study).epochs.tolist() == pytest.approx([1.0, 0.0, math.log(3) / math.log(10)])


def test_a_trial_that_went_further_leaves_less_doubt() -> None:
    study = make_study()
    for x in np.linspace(0.0, 1.0, 8):
        complete(study, float(x), 0.5 + 0.3 * math.sin(9 * x))
        pruned(study, float(x) + 0.03 if x < 1 else 0.97, 0.25 + 0.15 * math.sin(9 * x + 1))
    space = make_cube(LINE)
    doubts = []
    for trained in (1, 8):
        copy = make_study()
        copy.add_trials(study.get_trials())
        pruned(copy, 0.5, *np.linspace(0.2, 0.4, EPOCHS)[:trained])
        model = CurveModel(space, observed(copy))
        doubts.append(float(model.at_full_length(np.array([[0.5]]))[1][0]))
    assert doubts[1] < doubts[0]


def test_of_many_trials_the_best_and_some_of_all_others_are_kept() -> None:
    study = make_study()
    for x in np.linspace(0.0, 1.0, 500):
        complete(study, float(x), 0.5 + 0.3 * x)
    thinned = observed(study).thinned(most=20)
    assert len(thinned.targets) == len(thinned.points) == len(thinned.epochs) <= 21
    assert (thinned.points[:, 0] > 0.97).sum() >= 10
    assert thinned.points.min() == 0.0
