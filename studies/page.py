"""A page of figures and tables: one HTML file that shows all that it has without a network."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from data.errors import UserError
from data.files import write_whole
from studies.text import printable

TEMPLATE = Path(__file__).with_suffix(".html")
DIGITS = 4
"""Of a number that is drawn."""
LONGEST_LABEL = 24
"""Characters of a name beside an axis or above a column."""

RISES = (
    "more epochs may pay, but most curves rise there if the learning rate falls to 0, as with "
    "one-cycle schedules"
)
"""If a curve still rises at the last epoch."""

GRID = "rgba(128,128,128,0.2)"

Figures = dict[str, go.Figure]
"""By the identifier of their place in the page."""


def page(
    title: str, body: Sequence[str], figures: Figures, notes: Mapping[int, str] | None = None
) -> str:
    """The whole HTML file.

    Args:
        body: HTML, with a `place` for each figure.
        notes: what is added to the hover text of each point, by its `customdata`; for plotly.
    """
    data = {
        "figures": {name: figure.to_plotly_json() for name, figure in figures.items()},
        "notes": notes or {},
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(printable(title)),
        body=printable("\n".join(body)),
        # Else a text in it could end the script element.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
    )


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and its folder if there is none.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def section(name: str, title: str, look: str, content: str) -> str:
    """A part of the page, in HTML.

    Args:
        look: a sentence on what to look for.
        content: HTML, or a sentence on why there is none yet.
    """
    return (
        f'<section id="{name}">\n<h2>{title}</h2>\n<p class="look">{look}</p>\n{content}\n'
        "</section>"
    )


def place(figures: Figures, name: str, figure: go.Figure, least: int = 0) -> str:
    """Put a figure into the page.

    Args:
        least: pixels that it is wide at least; where there are fewer, it is scrolled sideways.
    """
    figures[name] = figure
    box = f'<div id="{name}" style="height:{figure.layout.height}px"></div>'
    return (
        f'<div class="scrolls"><div style="min-width:{least}px">{box}</div></div>' if least else box
    )


def tiles(shown: Sequence[tuple[str, str]]) -> str:
    """Large figures, each above what it is."""
    items = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
        for value, label in shown
    )
    return f'<div class="tiles">{items}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A table that scrolls sideways; one without a header is of facts, and is as wide as the page.

    Args:
        text: how many columns, from the left, are text rather than numbers.
    """

    def content(cell: str, tag: str) -> str:
        # A long name above short numbers may be on two lines.
        return html.escape(cell).replace("_", "_<wbr>" if tag == "th" else "_")

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=text' if index < text else ''}>{content(cell, tag)}</{tag}>"
            for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    head = f"<thead><tr>{row(header, 'th')}</tr></thead>" if header else ""
    kind = "" if header else ' class="facts"'
    return f'<div class="scrolls"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def new_figure(x: str | None, y: str | None, height: int = 340, percent: bool = True) -> go.Figure:
    """An empty figure, with transparent background, for light pages and dark ones.

    Args:
        x, y: titles of the axes, as `label` makes them of a name from elsewhere.
        percent: whether y is a share of 1.
    """
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    grid = {"gridcolor": GRID, "zeroline": False, "automargin": True}
    figure.update_xaxes(title={"text": x, "standoff": 10}, **grid)
    figure.update_yaxes(
        title={"text": y, "standoff": 10}, tickformat=".0%" if percent else None, **grid
    )
    return figure


def label(name: str) -> str:
    """A name beside an axis, where plotly reads HTML."""
    return html.escape(short_name(name))


def short_name(name: str) -> str:
    """A name, or the two ends of a long one."""
    half = LONGEST_LABEL // 2
    return name if len(name) <= LONGEST_LABEL else f"{name[: half - 1]}…{name[-half:]}"


def rounded(value: float | None) -> Any:
    """With as many digits as can be seen; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
