import math
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from studies.analysis import progress, surface
from studies.config import parse_study
from studies.figures import (
    MOST_POINTS,
    best_so_far,
    importance_bars,
    learning_curves,
    thinned,
    timeline_bars,
)
from studies.page import LONGEST_LABEL, short_name
from studies.space_figures import pair, parallel_coordinates, parameter_slice
from studies.timeline import timeline
from tests.studies.trials import CONFIG, NOW, SMALL, START, run, trial

BEST, BASELINE = SMALL[2], SMALL[0]


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def points(trace: Any) -> list[tuple[Any, ...]]:
    """Trial, x and y of each point."""
    return [
        point
        for point in zip(trace.customdata, trace.x, trace.y, strict=True)
        if point[0] is not None
    ]


def test_the_best_so_far_is_drawn_over_epochs_and_over_time_with_the_baseline() -> None:
    steps = progress(SMALL)
    over_epochs = traces(best_so_far(steps, "epochs", BASELINE))
    assert points(over_epochs["complete trial"]) == [(0, 6, 0.4), (2, 12, 0.7)]
    best = over_epochs["best so far"]
    assert (list(best.x), list(best.y)) == ([6, 7, 7, 12], [0.4, 0.4, 0.4, 0.7])
    line = over_epochs["the notebook's (trial 0)"]
    assert (list(line.x), list(line.y)) == ([0, 12], [0.4, 0.4])


@pytest.mark.parametrize(
    ("slower", "unit", "x"),
    [
        (1, "seconds", [40, 65, 75, 130]),
        (2, "minutes", [1.333, 2.167, 2.5, 4.333]),
        (60, "minutes", [40, 65, 75, 130]),
        (90, "hours", [1, 1.625, 1.875, 3.25]),
    ],
)
def test_the_best_so_far_over_time_is_in_a_unit_that_suits(
    slower: float, unit: str, x: list[float]
) -> None:
    steps = [replace(step, seconds=slower * step.seconds) for step in progress(SMALL)]
    figure = best_so_far(steps, "seconds", None)
    assert figure.layout.xaxis.title.text == f"{unit} of wall time"
    over_time = traces(figure)
    assert list(over_time["best so far"].x) == x
    assert len(over_time) == 2, "there is no baseline"


def test_a_baseline_that_is_not_complete_is_no_line() -> None:
    pruned = replace(BASELINE, state="pruned")
    assert "the notebook's (trial 0)" not in traces(best_so_far(progress(SMALL), "epochs", pruned))


def test_every_learning_curve_is_there_and_those_of_pruned_trials_are_faint() -> None:
    figure = learning_curves(SMALL, BEST, BASELINE)
    drawn: dict[int, list[tuple[int, float]]] = {}
    for trace in figure.data:
        for number, epoch, accuracy in points(trace):
            drawn.setdefault(number, []).append((epoch, accuracy))
    assert drawn == {
        item.number: list(enumerate(item.accuracies, start=1)) for item in SMALL if item.accuracies
    }
    shown = traces(figure)
    assert shown["pruned"].opacity < 0.5 < shown["best (trial 2)"].opacity
    assert shown["best (trial 2)"].line.width > shown["pruned"].line.width


def test_a_gap_parts_the_curves_of_one_state_and_one_epoch_is_a_point() -> None:
    records = [
        trial(0, "pruned", 0.1, 0.2),
        trial(1, "pruned", 0.3),
        trial(2, "pruned", 0.3, 0.4),
    ]
    lines, single = learning_curves(records, None, None).data
    assert list(lines.y) == [0.1, 0.2, None, 0.3, 0.4, None]
    assert (lines.mode, single.mode, points(single)) == ("lines", "markers", [(1, 1, 0.3)])


def test_a_trial_that_waits_after_some_epochs_has_its_curve_and_stands_out() -> None:
    """It was handed back, or its worker was lost: see `SMALL` for one that has not begun."""
    figure = learning_curves([*SMALL, trial(7, "waiting", 0.2, 0.3)], BEST, BASELINE)
    shown = traces(figure)["waiting"]
    assert points(shown) == [(7, 1, 0.2), (7, 2, 0.3)]
    assert shown.opacity > traces(figure)["pruned"].opacity
    colors = {trace.line.color for trace in figure.data if trace.name != "waiting"}
    assert shown.line.color not in colors


def test_of_a_long_curve_the_ends_and_the_best_stay() -> None:
    accuracies = [epoch / 1000 for epoch in range(500)]
    accuracies[123] = 0.9
    kept = thinned(accuracies)
    assert MOST_POINTS <= len(kept) <= MOST_POINTS + 1
    assert kept[0] == (1, 0.0)
    assert kept[-1] == (500, 0.499)
    assert (124, 0.9) in kept
    assert all(accuracies[epoch - 1] == accuracy for epoch, accuracy in kept)
    assert thinned([math.nan, 0.1, math.nan]) == [(2, 0.1)]


def test_the_most_important_parameter_is_on_top() -> None:
    figure = importance_bars({"rate": 0.75, "<b>": 0.25})
    (bars,) = figure.data
    assert dict(zip(bars.y, bars.x, strict=True)) == {"rate": 0.75, "&lt;b&gt;": 0.25}
    assert figure.layout.yaxis.categoryarray[-1] == "rate", "plotly draws from below"


def test_of_many_workers_every_second_has_its_name_beside_it() -> None:
    records = [trial(0, "complete", 0.5, worker="long-" * 9 + f"{item:02}") for item in range(40)]
    axis = timeline_bars(timeline(records, NOW)).layout.yaxis
    assert len(axis.categoryarray) == 40
    assert len(set(axis.ticktext)) == 20, "names that differ in their ends alone are told apart"
    assert all(len(text) <= LONGEST_LABEL for text in axis.ticktext)


def test_a_long_name_is_its_two_ends() -> None:
    assert short_name("a" * LONGEST_LABEL) == "a" * LONGEST_LABEL
    assert short_name("abc" + "-" * 19 + "xyz") == "abc--------…---------xyz"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1e-4, 0.5, ["0.0001", "0.001", "0.01", "0.1"]),
        (0.01, 0.2, ["0.01", "0.02", "0.05", "0.1", "0.2"]),
        (1e-12, 1.0, ["1e-12", "1e-09", "1e-06", "0.001", "1"]),
        (0.3, 0.4, ["0.3", "0.4"]),
    ],
)
def test_a_logarithmic_axis_has_a_few_round_numbers(
    low: float, high: float, said: list[str]
) -> None:
    space = {"rate": {"low": low, "high": high, "log": True}}
    config = parse_study({"name": "a", "space": space, "budget": {"trials": 1}}, "a")
    records = [trial(0, "complete", 0.5, parameters={"rate": high})]
    assert list(parameter_slice(records, config, "rate", None).layout.xaxis.ticktext) == said
    (lines,) = parallel_coordinates(records, config, ["rate"]).data
    assert list(lines.dimensions[0].ticktext) == said


def test_a_slice_shows_what_each_trial_reached_over_a_parameter() -> None:
    figure = parameter_slice(SMALL, CONFIG, "rate", BEST)
    shown = traces(figure)
    assert points(shown["complete"]) == [(0, 0.01, 0.4)]
    assert points(shown["pruned"]) == [(1, 0.5, 0.25)]
    assert points(shown["best"]) == [(2, 0.05, 0.7)]
    assert len(shown) == 3, "those that run, failed or diverged are left out"
    assert figure.layout.xaxis.type == "log"
    low, high = figure.layout.xaxis.range
    assert low < math.log10(0.001) < math.log10(1.0) < high, "the edges of the space are seen"


def test_the_points_of_a_choice_stand_at_the_choice() -> None:
    figure = parameter_slice(SMALL, CONFIG, "optimizer", BEST)
    assert list(figure.layout.xaxis.ticktext) == ["sgd", "adam"]
    ((_, x, _),) = points(traces(figure)["pruned"])
    assert round(x) == 1, "trial 1 is one of adam"
    ((_, x, _),) = points(traces(figure)["best"])
    assert x == 0


@pytest.mark.parametrize(("second", "kind"), [("decay", "contour"), ("optimizer", "heatmap")])
def test_the_pair_is_a_contour_between_numbers_and_else_a_map(second: str, kind: str) -> None:
    found = surface(SMALL, CONFIG, ("rate", second))
    assert found is not None
    figure = pair(SMALL, CONFIG, found, BEST)
    area = figure.data[0]
    assert area.type == kind
    for drawn, value in zip(area.z[-1], found.values[-1], strict=True):
        assert drawn == (None if value is None else pytest.approx(value, rel=1e-3))
    numbers = [number for trace in figure.data[1:] for number, *_ in points(trace)]
    assert sorted(numbers) == [0, 1, 2]
    star = traces(figure)["best"]
    assert (star.marker.symbol, list(star.customdata)) == ("star", [2])
    assert [list(trace.marker.color) for trace in figure.data[1:]] == [[0.25], [0.4], [0.7]]
    scales = {(trace.marker.cmin, trace.marker.cmax) for trace in figure.data[1:]}
    assert scales == {(area.zmin, area.zmax)} == {(0.25, 0.7)}


def test_parallel_coordinates_have_a_line_for_each_trial_with_a_result() -> None:
    (lines,) = parallel_coordinates(SMALL, CONFIG, ["rate", "optimizer"]).data
    rate, optimizer, accuracy = lines.dimensions
    reached = sorted(
        (item.value, math.log10(item.parameters["rate"]), item.parameters["optimizer"])
        for item in SMALL
        if item.state in ("complete", "pruned")
    )
    assert list(accuracy["values"]) == [value for value, _, _ in reached]
    assert list(rate["values"]) == pytest.approx([where for _, where, _ in reached], rel=1e-3)
    assert [optimizer.ticktext[index] for index in optimizer["values"]] == [
        name for _, _, name in reached
    ]
    assert list(rate.ticktext) == ["0.001", "0.01", "0.1", "1"]


@pytest.mark.parametrize("page", ["#ffffff", "#16181c"])
def test_the_lines_of_all_trials_are_seen_on_light_pages_and_on_dark_ones(page: str) -> None:
    (lines,) = parallel_coordinates(SMALL, CONFIG, ["rate", "optimizer"]).data
    for _, color in lines.line.colorscale:
        bright, dark = sorted((luminance(page), luminance(color)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 2, color


def luminance(color: str) -> float:
    """As WCAG 2 defines it, from 0 to 1."""
    shares = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_timeline_has_a_bar_for_each_run_and_marks_what_was_lost_and_resumed() -> None:
    figure = timeline_bars(timeline(SMALL, NOW))
    bars = {
        (number, worker, trace.name): (
            (datetime.fromisoformat(base) - START).total_seconds(),
            length / 1000,
        )
        for trace in figure.data
        if trace.type == "bar"
        for number, worker, base, length in zip(
            trace.customdata, trace.y, trace.base, trace.x, strict=True
        )
    }
    assert bars == {
        (0, "host-1", "complete"): (0, 40),
        (1, "host-2", "pruned"): (10, 20),
        (2, "host-2", "lost"): (50, 20),
        (2, "host-3", "complete"): (100, 30),
        (3, "host-1", "diverged"): (60, 5),
        (4, "host-1", "failed"): (70, 5),
        (5, "host-1", "running"): (900, 100),
    }
    lost, resumed = (traces(figure)[name] for name in ("worker lost", "resumed"))
    assert points(lost) == [(2, "2026-01-01T12:01:10.000", "host-2")]
    assert points(resumed) == [(2, "2026-01-01T12:01:40.000", "host-3")]


def test_a_pause_in_the_timeline_is_as_long_as_it_was() -> None:
    lost = run("host-1", 0.984, 2.334, 0, 1, lost=True)
    resumed = trial(
        0, "complete", 0.5, begin=2.35, seconds=0.5, epochs_before=1, earlier_runs=(lost,)
    )
    shown = traces(timeline_bars(timeline([resumed], NOW)))
    times = {name: (list(shown[name].base), list(shown[name].x)) for name in ("lost", "complete")}
    assert times == {
        "lost": (["2026-01-01T12:00:00.984"], [1350]),
        "complete": (["2026-01-01T12:00:02.350"], [500]),
    }
    assert points(shown["worker lost"]) == [(0, "2026-01-01T12:00:02.334", "host-1")]
    assert points(shown["resumed"]) == [(0, "2026-01-01T12:00:02.350", "host-1")]


def test_a_rim_keeps_long_runs_apart_and_takes_nothing_from_short_ones() -> None:
    """A day of a thousand runs that follow one another, after one that took a day."""
    day, count = 24 * 3600.0, 1000
    first = trial(0, "complete", 0.5, seconds=day)
    later = [
        trial(1 + index, "complete", 0.5, begin=day * (1 + index / count), seconds=day / count)
        for index in range(count)
    ]
    (bars,) = timeline_bars(timeline([first, *later], NOW)).data
    assert list(bars.marker.line.width) == [0.5] + [0] * count
    few = [trial(n, "complete", 0.5, begin=10 * n, seconds=10) for n in range(100)]
    (bars,) = timeline_bars(timeline(few, NOW)).data
    assert list(bars.marker.line.width) == [0.5] * 100


def test_one_value_alone_is_shown_near_to_it() -> None:
    figure = best_so_far(progress([trial(0, "complete", 0.4)]), "epochs", None)
    low, high = figure.layout.yaxis.range
    assert 0.3 < low < 0.4 < high < 0.5


def test_choices_that_are_numbers_are_in_order_of_size() -> None:
    config = parse_study(
        {"name": "a", "space": {"batch": [512, 64, 128]}, "budget": {"trials": 1}}, "a"
    )
    records = [trial(0, "complete", 0.5, parameters={"batch": 512})]
    figure = parameter_slice(records, config, "batch", None)
    assert list(figure.layout.xaxis.ticktext) == ["64", "128", "512"]
    ((_, x, _),) = points(traces(figure)["complete"])
    assert round(x) == 2
