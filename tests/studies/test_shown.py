"""The figures for optuna-dashboard, as they are stored, of studies of any kind."""

import json
from typing import Any

from studies.results import rank
from studies.shown import MOST_CURVES, MOST_RUNS, figure_rows
from studies.study import OpenedStudy
from tests.studies.kinds import (
    RATE,
    all_pruned_study,
    recorded_study,
    study_of_25_parameters,
)
from tests.studies.trials import study_of


def shown(opened: OpenedStudy) -> dict[str, Any]:
    """By the figure's name."""
    rows = figure_rows(opened, opened.study.get_trials(deepcopy=False), None)
    return {key.split(":")[2]: json.loads(text) for key, text in rows.items()}


def drawn(figure: dict[str, Any]) -> set[int]:
    """The trials in it."""
    return {
        number
        for trace in figure["data"]
        for number in trace.get("customdata") or ()
        if number is not None
    }


def test_of_one_trial_nothing_is_drawn() -> None:
    one = study_of({"name": "one", "space": {"rate": RATE}}, [("complete", {"rate": 0.1}, [0.5])])
    assert shown(one) == {}


def test_of_pruned_trials_alone_there_is_importance_and_who_ran_them() -> None:
    figures = shown(all_pruned_study())
    assert figures.keys() == {"importance", "workers"}
    (bars,) = figures["importance"]["data"]
    assert dict(zip(bars["y"], bars["x"], strict=True)).keys() == {"rate", "on"}
    assert drawn(figures["workers"]) == set(range(12))


def test_of_a_thousand_trials_the_best_and_the_last_are_drawn_and_little_is_stored() -> None:
    opened = recorded_study(1000)
    rows = figure_rows(opened, opened.study.get_trials(deepcopy=False), None)
    assert sum(map(len, rows.values())) < 500_000, "a reader of the page has all of it at each look"
    figures = shown(opened)
    assert figures.keys() == {"best-so-far", "learning-curves", "importance", "workers"}
    ranked = rank(opened.records)
    assert drawn(figures["learning-curves"]) == {item.number for item in ranked[:MOST_CURVES]}
    best = next(trace for trace in figures["best-so-far"]["data"] if trace["name"] == "best so far")
    assert best["y"][-1] == round(max(item.value or 0 for item in ranked), 4)
    assert drawn(figures["workers"]) == set(range(1000 - MOST_RUNS, 1000))


def test_of_many_parameters_it_is_said_how_many_are_drawn() -> None:
    importance = shown(study_of_25_parameters(60))["importance"]
    title = importance["layout"]["title"]["text"]
    assert title.startswith("Importance of the 20 most important of 25 parameters,<br>")
    (bars,) = importance["data"]
    assert len(bars["y"]) == 20
    assert bars["y"][0] == "x24"
