"""The report's figures of results and of time, from plain data.

`customdata` of a point is the number of its trial, so that a page can add to a hover text what it
knows of the trial.
"""

import html
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import plotly.graph_objects as go

from studies.analysis import Step
from studies.page import label, new_figure, rounded
from studies.results import TrialRecord
from studies.timeline import ShownRun

# After Okabe and Ito, whose colours colour-blind people tell apart; seen on white and on black.
COLORS = {
    "complete": "#2E86C1",
    "pruned": "#999999",
    "diverged": "#CC79A7",
    "failed": "#D55E00",
    "running": "#009E73",
    "waiting": "#7B61C4",
    "lost": "#8C564B",
    "handed back": "#7B61C4",
}
BEST = "#E69F00"
BASELINE = "#C0392B"
MOST_POINTS = 60
"""Of a learning curve that are drawn; more are not told apart."""
FEW_EPOCHS = 12
"""Each of which has its number at the axis."""
UNKNOWN = "unknown"  # worker
ROOM = 0.05
LANE = 26  # pixels
FEW_LANES = 30
"""Each of which has its name beside it; of more, which are narrow, every second."""
NARROW_LANE = 9  # pixels
RIM = 0.5  # pixels
SHORT_RUN = 1 / 200
"""Of the time that is drawn: a run of a few pixels, of which a rim would take too much."""


def best_so_far(steps: Sequence[Step], over: str, baseline: TrialRecord | None) -> go.Figure:
    """The best complete trial so far, and each complete trial, over epochs or over wall time.

    Args:
        over: `epochs` or `seconds`.
        baseline: whose value is a line, if it is complete.
    """
    title, scale = "epochs of all trials that had ended", 1.0
    if over == "seconds":
        longest = steps[-1].seconds if steps else 0.0
        units = {"hours": 3600.0, "minutes": 60.0}
        unit = next((unit for unit in units if longest > 3 * units[unit]), "seconds")
        title, scale = f"{unit} of wall time", units.get(unit, 1.0)
    figure = new_figure(title, "validation accuracy")
    at = [rounded(getattr(step, over) / scale) for step in steps]
    complete = [(x, step) for x, step in zip(at, steps, strict=True) if step.value is not None]
    figure.add_scatter(
        x=[x for x, _ in complete],
        y=[rounded(step.value) for _, step in complete],
        customdata=[step.trial for _, step in complete],
        name="complete trial",
        mode="markers",
        marker={"color": COLORS["complete"], "size": 5, "opacity": 0.6},
        hovertemplate="trial %{customdata}: %{y:.2%}<extra></extra>",
    )
    known = [(x, step.best) for x, step in zip(at, steps, strict=True) if step.best is not None]
    figure.add_scatter(
        x=[x for x, _ in known],
        y=[rounded(best) for _, best in known],
        name="best so far",
        mode="lines",
        line={"color": BEST, "width": 3, "shape": "hv"},
        hovertemplate="best so far %{y:.2%}<extra></extra>",
    )
    if baseline and baseline.state == "complete" and at:
        figure.add_scatter(
            x=[0, at[-1]],
            y=[rounded(baseline.value)] * 2,
            name=f"the notebook's (trial {baseline.number})",
            mode="lines",
            line={"color": BASELINE, "width": 1.5, "dash": "dash"},
            hovertemplate="the notebook's configuration %{y:.2%}<extra></extra>",
        )
    return with_room(figure)


def learning_curves(
    records: Sequence[TrialRecord], best: TrialRecord | None, baseline: TrialRecord | None
) -> go.Figure:
    """All learning curves, by state, those of pruned trials faint."""
    figure = new_figure("epoch", "validation accuracy", height=480)
    marked = [item.number for item in (best, baseline) if item]
    styles = [
        ("pruned", 0.45, 1.0),
        ("diverged", 0.7, 1.0),
        ("failed", 0.7, 1.0),
        ("waiting", 0.7, 1.0),
        ("running", 0.9, 1.5),
        ("complete", 0.55, 1.2),
    ]
    for state, opacity, width in styles:
        curves = [item for item in records if item.state == state and item.number not in marked]
        line = {"color": COLORS[state], "width": width}
        _add_curves(figure, curves, state, line, opacity)
    if baseline and not (best and best.number == baseline.number):
        line = {"color": BASELINE, "width": 2, "dash": "dash"}
        _add_curves(figure, [baseline], f"the notebook's (trial {baseline.number})", line, 1.0)
    if best:
        line = {"color": BEST, "width": 3}
        _add_curves(figure, [best], f"best (trial {best.number})", line, 1.0)
    epochs = max((len(item.accuracies) for item in records), default=0)
    figure.update_xaxes(
        range=[1 - 0.02 * epochs, 1.02 * epochs], dtick=1 if epochs <= FEW_EPOCHS else None
    )
    return with_room(figure)


def _add_curves(
    figure: go.Figure,
    curves: Sequence[TrialRecord],
    name: str,
    line: Mapping[str, Any],
    opacity: float,
) -> None:
    """One trace for all of them, and one of points for those of one epoch, which are no lines."""
    points = {item.number: thinned(item.accuracies) for item in curves}
    for mode, mine in (
        ("lines", [item for item in curves if len(points[item.number]) > 1]),
        ("markers", [item for item in curves if len(points[item.number]) == 1]),
    ):
        x: list[int | None] = []
        y: list[float | None] = []
        trials: list[int | None] = []
        for item in mine:
            x += [*(epoch for epoch, _ in points[item.number]), None]
            y += [*(rounded(accuracy) for _, accuracy in points[item.number]), None]
            trials += [*([item.number] * len(points[item.number])), None]
        if mine:
            figure.add_scatter(
                x=x,
                y=y,
                customdata=trials,
                name=name,
                legendgroup=name,
                showlegend=not any(trace.name == name for trace in figure.data),
                mode=mode,
                line=dict(line),
                marker={"color": line["color"], "size": 3 + line["width"]},
                opacity=opacity,
                hovertemplate="trial %{customdata}, epoch %{x}: %{y:.2%}<extra></extra>",
            )


def thinned(accuracies: Sequence[float]) -> list[tuple[int, float]]:
    """The epochs of a curve that are drawn, with their accuracy: evenly spaced, with the best and
    the last. Those without a number are left out."""
    numbers = [
        (epoch, accuracy)
        for epoch, accuracy in enumerate(accuracies, start=1)
        if math.isfinite(accuracy)
    ]
    last = len(numbers) - 1
    if last < MOST_POINTS:
        return numbers
    kept = {round(index * last / (MOST_POINTS - 1)) for index in range(MOST_POINTS)}
    kept.add(max(range(len(numbers)), key=lambda index: numbers[index][1]))
    return [numbers[index] for index in sorted(kept)]


def importance_bars(importances: Mapping[str, float]) -> go.Figure:
    """A bar for each parameter, the most important on top."""
    names = list(importances)
    figure = new_figure("share of the importance", None, height=90 + LANE * len(names))
    figure.add_bar(
        x=[rounded(value) for value in importances.values()],
        y=[html.escape(name) for name in names],
        orientation="h",
        marker={"color": COLORS["complete"]},
        hovertemplate="%{y}: %{x:.0%}<extra></extra>",
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(_lanes(names))
    return figure


def timeline_bars(shown: Sequence[ShownRun]) -> go.Figure:
    """Who ran what when: a line a worker, a bar a run, of which there is at least one."""
    workers = list(dict.fromkeys(entry.run.worker or UNKNOWN for entry in shown))
    lane = LANE if len(workers) <= FEW_LANES else NARROW_LANE
    height = 110 + lane * len(workers)
    figure = new_figure("UTC", None, height=height, percent=False)
    bounds = [at for entry in shown for at in (entry.run.started, entry.run.ended)]
    short = SHORT_RUN * (max(bounds) - min(bounds))
    for end in dict.fromkeys(entry.end for entry in shown):
        mine = [entry for entry in shown if entry.end == end]
        figure.add_bar(
            y=[_worker(entry) for entry in mine],
            base=[_time(entry.run.started) for entry in mine],
            x=[round(_took(entry) / timedelta(milliseconds=1)) for entry in mine],
            customdata=[entry.trial for entry in mine],
            name=end,
            showlegend=end != "lost",  # The cross at its end says so.
            orientation="h",
            marker={
                "color": COLORS[end],
                "line": {
                    "width": [RIM * (_took(entry) > short) for entry in mine],
                    "color": "white",
                },
            },
            opacity=0.9,
            hovertemplate=f"trial %{{customdata}} ({end}), from %{{base|%H:%M:%S}}<extra></extra>",
        )
    _add_marks(
        figure,
        [(entry, entry.run.started) for entry in shown if entry.run.epochs_before],
        "resumed",
        {"symbol": "triangle-right", "size": 10, "color": BEST},
    )
    _add_marks(
        figure,
        [(entry, entry.run.ended) for entry in shown if entry.run.lost],
        "worker lost",
        {"symbol": "x", "size": 9, "color": COLORS["lost"]},
    )
    figure.update_layout(barmode="overlay", bargap=0.25)
    figure.update_xaxes(type="date")
    figure.update_yaxes(_lanes(workers))
    return figure


def _lanes(names: Sequence[str]) -> dict[str, Any]:
    """An axis with a line for each name, the first on top."""
    escaped = [html.escape(name) for name in names]
    every = 1 if len(names) <= FEW_LANES else 2
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": escaped[::-1],
        "tickvals": escaped[::every],
        "ticktext": [label(name) for name in names[::every]],
    }


def _add_marks(
    figure: go.Figure,
    marks: Sequence[tuple[ShownRun, datetime]],
    name: str,
    marker: Mapping[str, Any],
) -> None:
    if marks:
        figure.add_scatter(
            x=[_time(at) for _, at in marks],
            y=[_worker(entry) for entry, _ in marks],
            customdata=[entry.trial for entry, _ in marks],
            name=name,
            mode="markers",
            marker={**marker, "line": {"width": 1, "color": "white"}},
            hovertemplate=f"trial %{{customdata}} {name}<extra></extra>",
        )


def _worker(entry: ShownRun) -> str:
    return html.escape(entry.run.worker or UNKNOWN)


def _took(entry: ShownRun) -> timedelta:
    return entry.run.ended - entry.run.started


def _time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def with_room(figure: go.Figure) -> go.Figure:
    """The same; a single value would else be shown on an axis from far below to far above it."""
    values = {value for trace in figure.data for value in trace.y or () if value is not None}
    if len(values) == 1:
        (value,) = values
        figure.update_yaxes(range=[value - ROOM, value + ROOM])
    return figure
