import math
import random
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies.analysis import (
    choice_index,
    importances,
    progress,
    sorted_choices,
    surface,
    varied_parameters,
)
from studies.config import parse_study
from studies.results import DIVERGED
from tests.benchmarks.curves import SPACE, read_table, table_space
from tests.studies.trials import CONFIG, SMALL, trial


def test_the_best_so_far_is_known_when_its_trial_has_ended() -> None:
    steps = progress(SMALL)
    assert [(step.trial, step.seconds) for step in steps] == [
        *((1, 30), (0, 40), (3, 65), (4, 75), (2, 130))
    ]
    assert [step.epochs for step in steps] == [2, 6, 7, 7, 12]
    assert [step.value for step in steps] == [None, 0.4, None, None, 0.7]
    assert [step.best for step in steps] == [None, 0.4, 0.4, 0.4, 0.7]


def test_time_begins_with_the_first_trial_though_it_still_runs() -> None:
    running = trial(0, "running", begin=0, seconds=None)
    (step,) = progress([running, trial(1, "complete", 0.5, begin=20, seconds=10)])
    assert step.seconds == 30


def curves(pruned: bool) -> list[FrozenTrial]:
    """The recorded curves as trials; all complete, or stopped below the median after 1, 3 and 9."""
    trials, reached = [], {1: [0.0], 3: [0.0], 9: [0.0]}
    for row in read_table()[1]:
        accuracies, state = row["accuracies"], TrialState.COMPLETE
        for epoch in reached if pruned else ():
            best = max(accuracies[:epoch], default=0.0)
            hopeless = best < np.median(reached[epoch])
            reached[epoch].append(best)
            if hopeless:
                accuracies, state = accuracies[:epoch], TrialState.PRUNED
                break
        trials.append(
            create_trial(
                state=state,
                params=row["parameters"],
                distributions=table_space(),
                value=max(accuracies, default=0.0) if state == TrialState.COMPLETE else None,
                intermediate_values=dict(enumerate(accuracies, start=1)),
            )
        )
    return trials


def test_importance_is_the_same_whether_the_bad_trials_were_pruned_or_not() -> None:
    whole = importances(curves(pruned=False), SPACE)
    stopped = importances(curves(pruned=True), SPACE)
    assert sum(whole.values()) == pytest.approx(1)
    assert whole.keys() == stopped.keys() == table_space().keys() - {"depth", "width"}
    assert next(iter(whole)) == next(iter(stopped)) == "learning_rate"
    assert all(abs(whole[name] - stopped[name]) < 0.05 for name in whole)


def test_a_parameter_that_decides_all_has_nearly_all_of_the_importance() -> None:
    draws = random.Random(0)
    space: dict[str, BaseDistribution] = dict.fromkeys("xy", FloatDistribution(0, 1))
    trials = []
    for _ in range(100):
        point = {"x": draws.random(), "y": draws.random()}
        trials.append(create_trial(params=point, distributions=space, value=point["x"]))
    found = importances(trials, space)
    assert list(found) == ["x", "y"]
    assert found["x"] > 0.9


def test_trials_that_diverged_at_once_say_where_not_to_be() -> None:
    space: dict[str, BaseDistribution] = {
        "x": FloatDistribution(0, 1),
        "y": CategoricalDistribution(["a", "b"]),
    }
    trials = [
        create_trial(
            params={"x": index / 20, "y": "ab"[index % 2]},
            distributions=space,
            state=TrialState.PRUNED if index > 5 else TrialState.COMPLETE,
            value=0.5 if index <= 5 else None,
        )
        for index in range(20)
    ]
    assert importances(trials, space)["x"] > 0.9


def of_two_choices(values: Sequence[float]) -> list[FrozenTrial]:
    """Complete trials, alternately of each choice."""
    space: dict[str, BaseDistribution] = {"x": CategoricalDistribution(["a", "b"])}
    return [
        create_trial(params={"x": "ab"[index % 2]}, distributions=space, value=value)
        for index, value in enumerate(values)
    ]


def test_one_that_diverged_is_not_among_the_best_whatever_it_had_reached() -> None:
    space: dict[str, BaseDistribution] = dict.fromkeys("xy", FloatDistribution(0, 1))

    def trials(diverged: bool) -> list[FrozenTrial]:
        """One half is good by a large y; the other came further by a large x, and diverged."""
        return [
            create_trial(
                params={"x": index / 40, "y": index * 7 % 40 / 40},
                distributions=space,
                state=TrialState.PRUNED,
                intermediate_values={1: index * 7 % 40 / 40 if index < 20 else 1 + index / 40},
                user_attrs={DIVERGED: "NaN"} if diverged and index >= 20 else {},
            )
            for index in range(40)
        ]

    assert next(iter(importances(trials(diverged=False), space))) == "x"
    assert next(iter(importances(trials(diverged=True), space))) == "y"


def test_importance_needs_no_warning_to_be_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps one back changes the whole process, and this is done in a thread."""
    with monkeypatch.context() as patched:  # Pytest itself catches warnings, too.
        patched.setattr(warnings, "catch_warnings", None)
        patched.setattr(warnings, "warn", lambda text, *_, **__: pytest.fail(str(text)))
        assert importances(of_two_choices([0.5] * 12), ["x"]) == {}, "all are equal"
        assert importances(of_two_choices([0.9] * 4 + [0.5] * 8), ["x"]) == {}
        assert importances(of_two_choices([0.9] * 5 + [0.5] * 7), ["x"]) == {"x": 1.0}
        space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}
        other = create_trial(params={"x": 0.5}, distributions=space, value=0.5)
        assert importances([other, *of_two_choices([0.1, 0.9] * 5)], ["x"]) == {"x": 1.0}
        assert importances([other, *of_two_choices([0.1, 0.9] * 4)], ["x"]) == {}


def test_a_parameter_that_the_study_does_not_know_is_left_out() -> None:
    assert list(importances(curves(pruned=False), ["dropout", "depth"])) == ["dropout"]


def test_of_few_trials_nothing_is_said() -> None:
    assert importances(curves(pruned=False)[:9], SPACE) == {}
    assert importances([], SPACE) == {}


def test_what_is_held_fixed_is_not_shown_and_the_most_important_comes_first() -> None:
    assert varied_parameters(CONFIG, {"optimizer": 0.7, "rate": 0.3}) == [
        "optimizer",
        "rate",
        "decay",
    ]


def test_true_is_not_one_and_numbers_stand_by_size() -> None:
    assert choice_index([1, True, "1"], True) == 1
    assert sorted_choices((64, 512, 128)) == [64, 128, 512]
    assert sorted_choices(("b", "a")) == ["b", "a"]


def test_the_surface_is_the_weighted_mean_of_the_trials_nearby() -> None:
    records = [
        trial(0, "complete", 0.2, rate=0.001, decay=0.0),
        trial(1, "pruned", 0.6, rate=0.01, decay=0.1),
        trial(2, "complete", 0.9, rate=1.0, decay=1.0),
    ]
    found = surface(records, CONFIG, ("rate", "decay"))
    assert found is not None
    assert (found.x[0], found.x[-1], found.y[0], found.y[-1]) == pytest.approx((0.001, 1, 0, 1))

    width = 0.29 * 3 ** (-1 / 6)
    for row, column in ((0, 0), (2, 9), (29, 29), (1, 3)):
        place = (math.log(float(found.x[column]) / 0.001) / math.log(1000), float(found.y[row]))
        weights = []
        for item in records:
            where = (
                math.log(item.parameters["rate"] / 0.001) / math.log(1000),
                item.parameters["decay"],
            )
            weights.append(math.exp(-0.5 * (math.dist(place, where) / width) ** 2))
        values = [item.value or 0 for item in records]
        mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        assert found.values[row][column] == pytest.approx(mean)
    assert found.values[0][29] is None, "no trial is near a large rate without decay"


def test_between_choices_there_is_nothing() -> None:
    records = [
        trial(0, "complete", 0.2, rate=0.1, optimizer="sgd"),
        trial(1, "complete", 0.8, rate=0.1, optimizer="adam"),
    ]
    found = surface(records, CONFIG, ("optimizer", "rate"))
    assert found is not None
    assert found.x == ["sgd", "adam"]
    nearest = min(range(len(found.y)), key=lambda row: abs(float(found.y[row]) - 0.1))
    assert found.values[nearest] == pytest.approx([0.2, 0.8])
    assert found.values[0] == [None, None], "no trial is near the smallest rate"


def test_trials_without_a_result_are_no_part_of_it() -> None:
    shown = [trial(0, "complete", 0.2), trial(1, "pruned", 0.6)]
    others = [trial(2, state, 0.9) for state in ("running", "waiting", "failed", "diverged")]
    others += [trial(3, "complete", math.inf), trial(4, "pruned", math.nan)]
    names = ("rate", "decay")
    assert surface([*others, *shown], CONFIG, names) == surface(shown, CONFIG, names)
    assert surface(others, CONFIG, names) is None


def test_what_the_study_does_not_vary_is_asked_of_its_file() -> None:
    own = parse_study({"name": "a", "space": {"x": [1, 2]}, "budget": {"trials": 1}}, "a")
    assert varied_parameters(own, {}) == ["x"]
