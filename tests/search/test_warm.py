import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from data.errors import UserError
from search.prepare import first_trials
from search.sampler import CurveGPSampler
from search.samplers import make_sampler
from search.space import make_space
from search.warm import (
    EARLIER_TRIALS,
    MOST_EARLIER_TRIALS,
    earlier_trials,
    most_informative,
    plan_warm_start,
)
from studies.config import StudyConfig, load_study_file, parse_study
from studies.confirmation import CONFIRMATION, SEARCHED
from studies.ownership import OwnedStorage
from studies.results import DIVERGED
from studies.storage import open_storage
from studies.study import WARM_START, OpenedStudy, create_or_continue, started_from

DIGEST = "0" * 16
EPOCHS = 3
EARLIER_SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1.0, "log": True},
    "optimizer": ["sgd", "adam"],
    "width": 8,
}
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 0.5, "log": True},
    "optimizer": ["adam", "adamw"],
    "batch_size": [64, 128],
    "width": 64,
}


@pytest.fixture
def storage(tmp_path: Path) -> OwnedStorage:
    return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


def config(name: str, space: dict[str, Any], **changes: Any) -> StudyConfig:
    content = {"name": name, "trial": {"epochs": EPOCHS}, "space": space, "budget": {"trials": 9}}
    return parse_study(content, name, changes)


def new(**changes: Any) -> StudyConfig:
    return config("new", SPACE, **{"sampler.warm_start": "old", **changes})


def add(
    opened: OpenedStudy, rate: float, optimizer: str, *curve: float, diverged: bool = False
) -> None:
    complete = len(curve) == EPOCHS
    opened.study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            value=max(curve) if complete else None,
            params={"learning_rate": rate, "optimizer": optimizer, "width": 8},
            distributions=make_space(opened.config.space),
            intermediate_values=dict(enumerate(curve, start=1)),
            user_attrs={DIVERGED: "nan"} if diverged else {},
        )
    )


@pytest.fixture
def old(storage: OwnedStorage) -> OpenedStudy:
    """Best first: 0.8 at 1.0, 0.7 with sgd, 0.6 the same again, 0.5 at 1e-5, 0.4; two pruned."""
    opened, _ = create_or_continue(storage, config("old", EARLIER_SPACE), DIGEST, [])
    add(opened, 0.01, "adam", 0.1, 0.3, 0.4)
    add(opened, 0.02, "sgd", 0.1, 0.7, 0.6)
    add(opened, 0.02, "sgd", 0.1, 0.5, 0.6)
    add(opened, 1.0, "adam", 0.1, 0.2, 0.8)
    add(opened, 1e-5, "adam", 0.1, 0.2, 0.5)
    add(opened, 0.03, "adam", 0.1, 0.2)
    add(opened, 0.5, "adam", diverged=True)
    opened.study.ask()
    opened.study.enqueue_trial({"learning_rate": 0.04})
    return opened


def create(storage: OwnedStorage, settings: StudyConfig) -> OpenedStudy:
    warm = plan_warm_start(storage, settings)
    opened, _ = create_or_continue(storage, settings, DIGEST, warm.starts, warm.attributes)
    return opened


@pytest.mark.usefixtures("old")
def test_the_best_distinct_configurations_are_mapped_into_the_new_space(
    storage: OwnedStorage,
) -> None:
    # The batch size is the notebook's, which the earlier study left as it is; the width is fixed.
    assert plan_warm_start(storage, new()).starts == [
        {"learning_rate": 0.5, "optimizer": "adam", "batch_size": 64},
        {"learning_rate": 0.02, "batch_size": 64},
        {"learning_rate": 1e-4, "optimizer": "adam", "batch_size": 64},
    ]


@pytest.mark.usefixtures("old")
def test_what_is_tried_anyway_is_not_tried_twice(storage: OwnedStorage) -> None:
    settings = new(**{"space.learning_rate": {"low": 1e-3, "high": 0.5, "log": True}})
    (baseline,) = first_trials(settings, "new")
    # 1e-5 comes to lie on the notebook's 1e-3.
    starts = plan_warm_start(storage, settings, [baseline]).starts
    assert [start["learning_rate"] for start in starts] == [0.5, 0.02, 0.01]
    # Nor is what the study's file says to start with; the next best takes its place.
    begin = [{"learning_rate": 0.02, "batch_size": 64}]
    settings = settings.model_copy(update={"start": tuple(begin)})
    tried = first_trials(settings, "new")
    assert tried == [baseline, *begin]
    starts = plan_warm_start(storage, settings, tried).starts
    assert [start["learning_rate"] for start in starts] == [0.5, 0.01]


def test_a_confirmed_winner_comes_first(storage: OwnedStorage, old: OpenedStudy) -> None:
    confirm(storage, old.identity)
    starts = plan_warm_start(storage, new()).starts
    assert [start["learning_rate"] for start in starts] == [0.01, 0.5, 0.02]


def test_the_winner_of_an_earlier_study_of_the_name_does_not_count(
    storage: OwnedStorage, old: OpenedStudy
) -> None:
    confirm(storage, "of another study")
    starts = plan_warm_start(storage, new()).starts
    assert starts[0]["learning_rate"] == 0.5


def confirm(storage: OwnedStorage, identity: str) -> None:
    """Let trial 0 be the confirmed winner of the study of that identity."""
    confirming, _ = create_or_continue(
        storage, config("old-confirm", EARLIER_SPACE), DIGEST, [], {SEARCHED: identity}
    )
    candidate = {"trial": 0, "claimed": 0.4, "mean": 0.45, "std": None, "diverged": 0}
    result = {
        "candidates": [candidate],
        "winner": candidate,
        "trial": 0,
        "parameters": {},
        "seeds": 1,
        "test": None,
        "baseline": None,
        "difference": None,
    }
    confirming.study.set_user_attr(CONFIRMATION, {"asked": [], "result": result})


def test_finished_trials_that_are_points_of_the_new_space_come_along_and_stay(
    storage: OwnedStorage, old: OpenedStudy
) -> None:
    opened = create(storage, new())
    optuna.delete_study(study_name="old", storage=storage)
    trials = earlier_trials(opened)
    # Not the rates beyond the range, where nothing was measured, nor the optimizer that is gone.
    assert [(trial.state, trial.params["learning_rate"]) for trial in trials] == [
        (TrialState.COMPLETE, 0.01),
        (TrialState.PRUNED, 0.03),
        (TrialState.PRUNED, 0.5),
    ]
    assert trials[0].value == 0.4
    assert [trial.intermediate_values for trial in trials] == [
        {1: 0.1, 2: 0.3, 3: 0.4},
        {1: 0.1, 2: 0.2},
        {},
    ]
    for trial in trials:
        assert trial.distributions == make_space(opened.config.space)
        assert trial.params["width"] == 64, "what either study holds fixed sets no trial apart"
        assert trial.params["batch_size"] == 64
    assert started_from(opened) == "starts from the 3 best of study 'old'"


@pytest.mark.usefixtures("old")
def test_a_study_that_takes_no_start_is_not_said_to_start_from_the_best(
    storage: OwnedStorage,
) -> None:
    warm = {WARM_START: {"study": "old", "starts": 0, "trials": 3}}
    opened, _ = create_or_continue(storage, new(), DIGEST, [], warm)
    assert started_from(opened) == "weighs the trials of study 'old'"


@pytest.mark.usefixtures("old")
def test_a_value_that_the_earlier_study_varied_must_be_the_fixed_one(storage: OwnedStorage) -> None:
    opened = create(storage, new(**{"space.optimizer": "sgd"}))
    assert [trial.value for trial in earlier_trials(opened)] == [0.7, 0.6]


@pytest.mark.usefixtures("old")
def test_a_varied_parameter_of_unknown_value_leaves_no_trials_but_the_starts(
    storage: OwnedStorage,
) -> None:
    settings = new(**{"trial.objective": "mine:train", "space.nesterov": [False, True]})
    opened = create(storage, settings)
    assert earlier_trials(opened) == []
    waiting = [trial.system_attrs["fixed_params"] for trial in opened.study.trials]
    assert waiting[1] == {"learning_rate": 0.02, "batch_size": 64}


@pytest.mark.usefixtures("old")
def test_with_other_epochs_only_results_come_along(storage: OwnedStorage) -> None:
    opened = create(storage, new(**{"trial.epochs": 7}))
    (trial,) = earlier_trials(opened)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)
    assert trial.intermediate_values == {}


def test_reports_that_are_no_numbers_are_kept(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    opened, _ = create_or_continue(storage, config("old", EARLIER_SPACE), DIGEST, [])
    add(opened, 0.01, "adam", 0.3, math.nan, 0.4)
    add(opened, 0.01, "adam", math.nan, math.inf)
    first, second = earlier_trials(create(storage, new()))
    assert math.isnan(first.intermediate_values[2])
    assert second.intermediate_values[2] == math.inf


@pytest.mark.usefixtures("old")
def test_a_study_that_is_not_there_or_has_nothing_to_offer_is_named(storage: OwnedStorage) -> None:
    with pytest.raises(UserError, match="no study 'older' in this storage; there: old"):
        plan_warm_start(storage, new(**{"sampler.warm_start": "older"}))
    opened, _ = create_or_continue(storage, config("empty", EARLIER_SPACE), DIGEST, [])
    add(opened, 0.01, "adam", 0.5)
    with pytest.raises(UserError, match="study 'empty': no trial is complete yet"):
        plan_warm_start(storage, new(**{"sampler.warm_start": "empty"}))
    foreign = config("new", {"x": [1, 2]}, **{"sampler.warm_start": "old"})
    with pytest.raises(UserError, match="study 'old': no parameter that study 'new' varies"):
        plan_warm_start(storage, foreign)


def test_a_study_that_started_from_none_has_no_earlier_trials(old: OpenedStudy) -> None:
    assert earlier_trials(old) == []
    assert started_from(old) is None


def test_of_many_trials_the_best_complete_and_the_longest_are_taken() -> None:
    def trial(value: float | None, *accuracies: float) -> dict[str, Any]:
        return {"value": value, "accuracies": list(accuracies)}

    best, worst = trial(0.9, 0.9), trial(0.1, 0.1)
    long, short, none = trial(None, 0.2, 0.3), trial(None, 0.7), trial(None)
    trials = [none, short, worst, long, best]
    assert most_informative(trials, 9) == [best, worst, long, short, none]
    assert most_informative(trials, 2) == [best, worst]


@pytest.mark.usefixtures("old")
def test_the_gaussian_process_is_given_them(storage: OwnedStorage) -> None:
    opened = create(storage, new())
    trials = earlier_trials(opened)
    sampler = make_sampler(opened.config.sampler, 0, EPOCHS, trials)
    assert isinstance(sampler, CurveGPSampler)
    assert sampler._earlier == tuple(trials)


def test_hundreds_of_long_trials_fit(storage_url: str) -> None:
    point = {"learning_rate": 0.01, "optimizer": "adam", "batch_size": 64, "width": 64}
    curve = [1 / (3 + epoch) for epoch in range(100)]
    copies = [{"parameters": point, "accuracies": curve, "value": curve[0]}] * MOST_EARLIER_TRIALS
    storage = open_storage(storage_url, create=True)
    opened, _ = create_or_continue(storage, new(), DIGEST, [], {EARLIER_TRIALS: copies})
    trials = earlier_trials(opened)
    assert len(trials) == MOST_EARLIER_TRIALS
    assert list(trials[-1].intermediate_values.values()) == curve


def test_the_shipped_studies_start_from_each_other(storage: OwnedStorage) -> None:
    quick = load_study_file("quickstart")
    opened, _ = create_or_continue(storage, quick, DIGEST, [])
    point = {
        "learning_rate": 0.02,
        "optimizer": "nadam",
        "schedule": "one-cycle",
        "batch_size": 128,
        "weight_decay": 1e-4,
        "augmentation": "flip+crop",
        "momentum": 0.9,
        "label_smoothing": 0.1,
        "pooling": "max",
    }
    opened.study.add_trial(
        optuna.trial.create_trial(
            value=0.5, params={**point, "width": 8}, distributions=make_space(quick.space)
        )
    )
    big = load_study_file("cifar10", {"sampler.warm_start": "quickstart"})
    started = create(storage, big)
    (trial,) = earlier_trials(started)
    assert {name: trial.params[name] for name in point} == point
    assert started_from(started) == "starts from the best of study 'quickstart'"
