"""The report's figures of the search space, from plain data: what trials reached, and where."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from studies.analysis import Surface, are_numbers, choice_index, sorted_choices, with_result
from studies.config import Parameter, Range, StudyConfig
from studies.figures import BEST, COLORS, ROOM, with_room
from studies.page import label, new_figure, rounded
from studies.results import TrialRecord
from studies.text import as_written, shortened

GOLDEN = 0.618
MARGIN = 0.05
"""At each end of a range, so that points at its bounds are seen whole."""
LEVELS = 30
"""Of a contour, at most: what lies between the best trial and the worst has a few of them."""
LONGEST_CHOICE = 16  # characters
MARKS: Mapping[str, Mapping[str, Any]] = {
    "pruned": {"size": 7, "symbol": "diamond", "line": {"width": 1, "color": "#999"}},
    "complete": {"size": 9, "line": {"width": 1.5, "color": "white"}},
    "best": {"size": 16, "symbol": "star", "line": {"width": 1.5, "color": BEST}},
}
"""Of trials on a coloured surface."""
LINES = ((0.0, "#7B61C4"), (0.5, "#CC79A7"), (1.0, BEST))
"""A scale of colours that are seen on white and on black, as the ends of Viridis are not."""
FEW_TICKS = 6
"""At a logarithmic axis."""


def parameter_slice(
    records: Sequence[TrialRecord], config: StudyConfig, name: str, best: TrialRecord | None
) -> go.Figure:
    """What trials have reached over one parameter; pruned ones faint. Here and in the other
    figures of the space are the trials `with_result`."""
    figure = new_figure(label(name), None, height=270)
    for state, opacity in (("pruned", 0.4), ("complete", 0.7)):
        known = [
            item
            for item in with_result(records, config, [name])
            if item.state == state and not (best and item.number == best.number)
        ]
        if known:
            marker = {"color": COLORS[state], "size": 5, "opacity": opacity}
            _add_points(figure, config, name, known, state, marker)
    if best and with_result([best], config, [name]):
        marker = {"color": BEST, "size": 11, "symbol": "star"}
        _add_points(figure, config, name, [best], "best", marker)
    figure.update_xaxes(**_axis(config.space[name]))
    figure.update_layout(showlegend=False)
    return with_room(figure)


def _add_points(
    figure: go.Figure,
    config: StudyConfig,
    name: str,
    records: Sequence[TrialRecord],
    what: str,
    marker: Mapping[str, Any],
) -> None:
    parameter = config.space[name]
    x: list[float]
    if isinstance(parameter, Range):
        x = [rounded(item.parameters[name]) for item in records]
    else:
        # Side by side within a choice, in the order of their numbers' golden fractions.
        choices = sorted_choices(parameter)
        x = [
            rounded(
                choice_index(choices, item.parameters[name])
                + (item.number * GOLDEN % 1 - 0.5) * 0.6 * (what != "best")
            )
            for item in records
        ]
    figure.add_scatter(
        x=x,
        y=[rounded(item.value) for item in records],
        customdata=[item.number for item in records],
        name=what,
        mode="markers",
        marker=dict(marker),
        hovertemplate=f"trial %{{customdata}} ({what}): %{{y:.2%}}<extra></extra>",
    )


def pair(
    records: Sequence[TrialRecord], config: StudyConfig, shown: Surface, best: TrialRecord | None
) -> go.Figure:
    """A surface over two parameters, with the trials that it comes from, in colours of one scale.

    A contour between numbers; a map of fields where a parameter has choices that are not.
    """
    first, second = shown.names
    figure = new_figure(label(first), label(second), height=480, percent=False)
    values = [[rounded(value) for value in row] for row in shown.values]
    known = with_result(records, config, shown.names)
    # Not plotly's axis of colours, in which a contour hangs.
    least, most = _span([rounded(item.value) for item in known])
    common = {
        "x": _pair_values(config, first, shown.x),
        "y": _pair_values(config, second, shown.y),
        "z": values,
        "colorscale": "Viridis",
        "zmin": least,
        "zmax": most,
        "colorbar": {"title": {"text": "accuracy"}, "tickformat": ".0%", "thickness": 12},
        "hovertemplate": "%{z:.2%}<extra></extra>",
    }
    parameters = [config.space[name] for name in shown.names]
    is_contour = all(isinstance(item, Range) or are_numbers(item) for item in parameters)
    if is_contour:
        lines = {"contours": {"coloring": "fill"}, "ncontours": LEVELS, "line": {"width": 0.5}}
        figure.add_trace(go.Contour(**common, **lines))
    else:
        figure.add_trace(go.Heatmap(**common))
    number = best.number if best else None
    for what, mark in MARKS.items():
        mine = [item for item in known if what == ("best" if item.number == number else item.state)]
        about = "perhaps " if what == "pruned" else ""
        figure.add_scatter(
            x=_pair_values(config, first, [item.parameters[first] for item in mine]),
            y=_pair_values(config, second, [item.parameters[second] for item in mine]),
            customdata=[item.number for item in mine],
            name=what,
            mode="markers",
            marker={
                **mark,
                "color": [rounded(item.value) for item in mine],
                "colorscale": "Viridis",
                "cmin": least,
                "cmax": most,
            },
            hovertemplate=f"trial %{{customdata}} ({what}): {about}%{{marker.color:.2%}}"
            "<extra></extra>",
        )
    figure.update_xaxes(**_axis(config.space[first]))
    figure.update_yaxes({**_axis(config.space[second]), "tickangle": 0})
    return figure


def _axis(parameter: Parameter) -> dict[str, Any]:
    """The scale of a parameter; its choices stand at 0, 1, 2 and so on."""
    if isinstance(parameter, Range):
        low, high = float(parameter.low), float(parameter.high)
        if not parameter.log:
            return {"range": _with_margin(low, high)}
        ticks = _log_ticks(low, high)
        return {
            "type": "log",
            "range": _with_margin(math.log10(low), math.log10(high)),
            "tickvals": ticks,
            "ticktext": [f"{tick:g}" for tick in ticks],
        }
    choices = sorted_choices(parameter)
    return {
        "tickvals": list(range(len(choices))),
        "ticktext": [html.escape(_shown(choice)) for choice in choices],
        "range": [-0.6, len(choices) - 0.4],
        "autotickangles": [0, -45],
    }


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; in a narrow range twice and five times these, too, or else its bounds."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0,) if high / low > 30 else (1.0, 2.0, 5.0)
    inside = [
        tick
        for exponent in exponents
        for step in steps
        if low <= (tick := float(f"{step:g}e{exponent}")) <= high
    ]
    return inside[:: math.ceil(len(inside) / FEW_TICKS)] if len(inside) > 1 else [low, high]


def _with_margin(low: float, high: float) -> list[float]:
    margin = MARGIN * (high - low)
    return [low - margin, high + margin]


def _pair_values(config: StudyConfig, name: str, values: Sequence[Any]) -> list[float]:
    parameter = config.space[name]
    if isinstance(parameter, Range):
        return [rounded(value) for value in values]
    choices = sorted_choices(parameter)
    return [choice_index(choices, value) for value in values]


def parallel_coordinates(
    records: Sequence[TrialRecord], config: StudyConfig, names: Sequence[str]
) -> go.Figure:
    """A line for each trial through its parameters to what it has reached."""
    known = sorted(with_result(records, config, names), key=lambda item: item.value or 0.0)
    results = [rounded(item.value) for item in known]
    dimensions = [_dimension(known, config, name) for name in names]
    ticks = {"tickformat": ".0%"}
    least, most = _span(results)
    dimensions.append({"label": "accuracy", "values": results, "range": [least, most], **ticks})
    figure = new_figure(None, None, height=440)
    figure.add_trace(
        go.Parcoords(
            line={
                "color": results,
                "cmin": least,
                "cmax": most,
                "colorscale": LINES,
                "showscale": True,
                "colorbar": {"thickness": 12, **ticks},
            },
            dimensions=dimensions,
            labelangle=-20,
            unselected={"line": {"opacity": 0.05}},
        )
    )
    figure.update_layout(margin={"l": 70, "r": 30, "t": 90, "b": 30})
    return figure


def _span(results: Sequence[float]) -> tuple[float, float]:
    """Of a scale of colours: from the least to the most, which are not the same."""
    least, most = min(results), max(results)
    return (least, most) if least < most else (least - ROOM, most + ROOM)


def _dimension(known: Sequence[TrialRecord], config: StudyConfig, name: str) -> dict[str, Any]:
    parameter = config.space[name]
    values = [item.parameters[name] for item in known]
    if not isinstance(parameter, Range):
        choices = sorted_choices(parameter)
        return {
            "label": label(name),
            "values": [choice_index(choices, value) for value in values],
            "range": [0, max(len(choices) - 1, 1)],
            "tickvals": list(range(len(choices))),
            "ticktext": [_shown(choice) for choice in choices],  # Here plotly reads no HTML.
        }
    low, high = float(parameter.low), float(parameter.high)
    middle = round((low + high) / 2) if parameter.is_whole else (low + high) / 2
    scale, ticks = (
        (math.log10, _log_ticks(low, high)) if parameter.log else (float, [low, middle, high])
    )
    return {
        "label": label(name),
        "values": [rounded(scale(value)) for value in values],
        "range": [scale(low), scale(high)],
        "tickvals": [scale(tick) for tick in ticks],
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def _shown(choice: object) -> str:
    """Not too long; not escaped."""
    return shortened(as_written(choice), LONGEST_CHOICE)
