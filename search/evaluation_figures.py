"""The evaluation's figures, from plain data."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from data.corrupt import SEVERITIES
from model.metrics import BINS, Bin, ClassFigures, epochs_to
from search.evaluate import CONVERGED
from studies.page import GRID, new_figure, rounded, short_name

COLORS = ("#2E86C1", "#E69F00")
"""Of the first model and the second; colour-blind people tell them apart."""
OF_FIGURES = {"precision": "#2E86C1", "recall": "#E69F00", "f1": "#009E73"}
FEW_CLASSES = 15
"""Whose counts are written into the confusion matrix."""

Curves = Mapping[str, Sequence[float]]
"""By the name of a model."""


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> go.Figure:
    """How many images of each class (row) were taken for each class (column)."""
    names = labels(classes)
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    figure = new_figure(
        "taken for", "true class", height=min(900, 200 + 30 * len(classes)), percent=False
    )
    figure.add_heatmap(
        z=shares,
        x=names,
        y=names,
        text=matrix,
        zmin=0,
        zmax=1,
        colorscale="Blues",
        showscale=False,
        xgap=1,
        ygap=1,
        # Plotly sees to it that it can be read on its colour.
        texttemplate="%{text}" if len(classes) <= FEW_CLASSES else None,
        hovertemplate="%{y} taken for %{x}: %{text} images, %{z:.1%}<extra></extra>",
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return figure


def of_classes(found: Sequence[ClassFigures], classes: Sequence[str]) -> go.Figure:
    """Precision, recall and F1 of each class as points of a line."""
    figure = new_figure(None, None, height=min(1500, 110 + 26 * len(classes)))
    names = labels(classes)
    for name, color in OF_FIGURES.items():
        figure.add_scatter(
            x=[rounded(getattr(of_class, name)) for of_class in found],
            y=names,
            name={"f1": "F1"}.get(name, name),
            mode="markers",
            marker={"color": color, "size": 9},
            hovertemplate="%{y}: %{x:.1%}",
        )
    figure.update_xaxes(tickformat=".0%", range=[-0.02, 1.02])
    figure.update_yaxes(type="category", tickformat=None, autorange="reversed")
    return figure


def reliability(bins: Sequence[Bin]) -> go.Figure:
    """Accuracy over confidence, in bins, and below it how many images are in each."""
    figure = new_figure(None, "accuracy", height=380)
    centres = [round((item.low + item.high) / 2, 4) for item in bins]
    figure.add_bar(
        x=centres,
        y=[rounded(item.accuracy) for item in bins],
        hovertext=[str(item.images) for item in bins],
        width=1 / BINS,
        showlegend=False,
        marker={"color": COLORS[0], "line": {"width": 0.5, "color": "white"}},
        hovertemplate="confidence about %{x:.0%}: %{y:.1%} of %{hovertext} right<extra></extra>",
    )
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        name="as sure as right",
        mode="lines",
        line={"color": "#999999", "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )
    figure.add_bar(
        x=centres,
        y=[item.images for item in bins],
        width=1 / BINS,
        showlegend=False,
        yaxis="y2",
        marker={"color": "#999999", "line": {"width": 0.5, "color": "white"}},
        hovertemplate="%{y} images<extra></extra>",
    )
    figure.update_layout(
        yaxis={"domain": [0.32, 1], "range": [0, 1]},
        yaxis2={"domain": [0, 0.22], "title": "images", "gridcolor": GRID, "automargin": True},
        xaxis={"title": "confidence", "range": [0, 1], "tickformat": ".0%", "anchor": "y2"},
    )
    return figure


def robustness(plain: Sequence[float], curves: Curves) -> go.Figure:
    """Accuracy over the severity of one corruption, of each model; 0 is as the images are.

    Args:
        plain: accuracy of each model on the images as they are.
    """
    figure = new_figure("severity", None, height=230)
    for color, start, (name, curve) in zip(COLORS, plain, curves.items(), strict=False):
        figure.add_scatter(
            x=[0, *SEVERITIES],
            y=[rounded(value) for value in (start, *curve)],
            **_line(name, color, len(curves)),
            hovertemplate="severity %{x}: %{y:.1%}",
        )
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_layout(margin={"t": 10, "b": 40})
    return figure


def convergence(curves: Curves) -> go.Figure:
    """Validation accuracy over epochs, with a mark where it has come close to the last."""
    figure = new_figure("epoch", "validation accuracy", height=340)
    for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
        figure.add_scatter(
            x=list(range(1, len(curve) + 1)),
            y=[rounded(value) for value in curve],
            **_line(name, color, len(curves)),
            hovertemplate="epoch %{x}: %{y:.2%}",
        )
        marks: dict[int, list[str]] = {}
        for share in CONVERGED:
            epoch = epochs_to(curve, share)
            if epoch is not None:
                marks.setdefault(epoch, []).append(f"{share:.0%}")
        figure.add_scatter(
            x=list(marks),
            y=[rounded(curve[epoch - 1]) for epoch in marks],
            text=[", ".join(shares) for shares in marks.values()],
            mode="markers+text",
            # Beside a curve that rises, and within the figure.
            textposition=[
                "top left" if 2 * epoch > len(curve) else "bottom right" for epoch in marks
            ],
            cliponaxis=False,
            marker={"color": color, "size": 12, "symbol": "diamond"},
            showlegend=False,
            hovertemplate="epoch %{x}: %{text} of the last accuracy<extra></extra>",
        )
    longest = max(len(curve) for curve in curves.values())
    figure.update_xaxes(dtick=1 if longest <= 12 else None, range=[0.8, longest + 0.5])
    return figure


def _line(name: str, color: str, models: int) -> dict[str, Any]:
    return {
        "name": html.escape(name),
        "showlegend": models > 1,
        "mode": "lines+markers",
        "line": {"color": color, "width": 2.5},
    }


def labels(classes: Sequence[str]) -> list[str]:
    """The names of classes at an axis: short, and no two the same."""
    short = [short_name(name) for name in classes]
    if len(set(short)) < len(short):
        short = [f"{index} {name}" for index, name in enumerate(short)]
    return [html.escape(name) for name in short]
