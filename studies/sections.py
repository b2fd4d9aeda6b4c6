"""The sections of the report's page: in each a sentence on what to look for, and what there is."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go
import tomli_w

from studies import figures, space_figures
from studies.analysis import with_result
from studies.config import DEFAULT_OBJECTIVE
from studies.findings import Findings

TOP = 10
"""Trials in the table of the best."""
FEW_WORKERS = 12
"""Whose times are shown without being asked for."""

Figures = dict[str, go.Figure]
"""By the identifier of their place in the page."""


def _section(place: str, title: str, look: str, content: str) -> str:
    return (
        f'<section id="{place}">\n<h2>{title}</h2>\n<p class="look">{look}</p>\n{content}\n'
        "</section>"
    )


def _place(drawn: Figures, name: str, figure: go.Figure, wide: bool = False) -> str:
    """Put a figure into the page; a wide one is scrolled sideways on a phone."""
    drawn[name] = figure
    height = figure.layout.height
    box = f'<div id="{name}" style="height:{height}px"></div>'
    return f'<div class="scrolls"><div class="wide">{box}</div></div>' if wide else box


def _empty(why: str) -> str:
    return f'<p class="empty">{why}</p>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A table that scrolls sideways; one without a header is of facts, and is as wide as the page.

    Args:
        text: how many columns, from the left, are text rather than numbers.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=text' if index < text else ''}>{html.escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    head = f"<thead><tr>{row(header, 'th')}</tr></thead>" if header else ""
    kind = "" if header else ' class="facts"'
    return f'<div class="scrolls"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def _best_so_far(found: Findings, drawn: Figures) -> str:
    content = _empty("No trial is complete yet.")
    look = "A line that still rises says that more trials would pay"
    if found.baseline:
        look += (
            "; its distance from the dashed line is what the search has gained over the notebook's "
            "configuration"
        )
    if found.ranked:
        longest = found.steps[-1].seconds if found.steps else 0.0
        unit = next((unit for unit in (3600.0, 60.0) if longest > 3 * unit), 1.0)
        over_epochs = figures.best_so_far(found.steps, "epochs", found.baseline)
        over_time = figures.best_so_far(found.steps, "seconds", found.baseline, unit)
        content = (
            f'<div class="side-by-side">{_place(drawn, "best-over-epochs", over_epochs)}'
            f"{_place(drawn, 'best-over-time', over_time)}</div>"
        )
    return _section(
        "best-so-far",
        "Best so far",
        f"{look}.",
        content,
    )


def _top(found: Findings, _: Figures) -> str:
    content = _empty("No trial is complete yet.")
    if found.ranked:
        header = ["rank", "trial", "validation", "epochs", "time", *found.varied]
        rows = [
            [
                str(place),
                str(item.number),
                f"{item.value or 0:.2%}",
                str(len(item.accuracies)),
                readable(item.seconds or 0.0),
                *(shown_value(item.parameters.get(name, "")) for name in found.varied),
            ]
            for place, item in enumerate(found.ranked[:TOP], start=1)
        ]
        content = _table(header, rows)
    return _section(
        "top",
        "The ten best trials",
        "Look for what they have in common. The best of many noisy trials is partly luck: "
        f"<code>hpsearch confirm {html.escape(found.config.name)}</code> trains them again with "
        "new seeds.",
        content,
    )


def _learning_curves(found: Findings, drawn: Figures) -> str:
    best = found.ranked[0] if found.ranked else None
    content = _empty("No trial has reported an epoch yet.")
    if any(item.value is not None for item in found.records):
        figure = figures.learning_curves(found.records, best, found.baseline)
        content = _place(drawn, "curves", figure)
    return _section(
        "learning-curves",
        "Learning curves",
        "If the best still rise at the last epoch, more epochs would pay; if a faint, pruned curve "
        "was about to overtake others, the pruner is too eager.",
        content,
    )


def _importance(found: Findings, drawn: Figures) -> str:
    content = _empty("Too few trials have a result to tell.")
    if found.importances:
        content = _place(drawn, "importances", figures.importance_bars(found.importances))
    return _section(
        "importance",
        "Importance of the parameters",
        "How much each decides whether a trial is among the best (PED-ANOVA, over pruned trials "
        "too): what is near zero may be held fixed in the next study.",
        content,
    )


def _slices(found: Findings, drawn: Figures) -> str:
    best = found.ranked[0] if found.ranked else None
    with_value = [item for item in found.records if item.value is not None]
    content = _empty("No trial has a result yet, or no parameter varies.")
    if with_value and found.varied:
        places = (
            _place(
                drawn,
                f"slice-{index}",
                space_figures.parameter_slice(with_value, found.config, name, best),
            )
            for index, name in enumerate(found.varied)
        )
        content = f'<div class="small">{"".join(places)}</div>'
    return _section(
        "slices",
        "Each parameter",
        "Look where the highest points are (the star is the best trial): at the edge of a range, "
        "widen it. Of pruned trials, grey, it is what they had reached.",
        content,
    )


def _pair(found: Findings, drawn: Figures) -> str:
    content = _empty("It takes two parameters whose importance is known.")
    if found.surface:
        figure = space_figures.pair(found.records, found.config, found.surface)
        content = _place(drawn, "pair-surface", figure)
    return _section(
        "pair",
        "The two most important parameters together",
        "A slanting ridge says that the two have to be chosen together. The colour is the mean of "
        "what the trials nearby have reached, pruned ones too.",
        content,
    )


def _parallel_coordinates(found: Findings, drawn: Figures) -> str:
    content = _empty("No trial has a result yet, or no parameter varies.")
    if found.varied and with_result(found.records, found.config, found.varied):
        figure = space_figures.parallel_coordinates(found.records, found.config, found.varied)
        content = _place(drawn, "parallel", figure, wide=True)
    return _section(
        "parallel-coordinates",
        "Parallel coordinates",
        "Drag along the accuracy's axis to see the best trials alone: where their lines meet, they "
        "agree. The most important parameter is on the left.",
        content,
    )


def _timeline(found: Findings, drawn: Figures) -> str:
    content = _empty("No trial has begun yet.")
    if found.runs:
        header = ["worker", "from (UTC)", "to", "runs", "resumed", "lost", "busy", "idle"]
        rows = [
            [
                item.worker,
                f"{item.first:%m-%d %H:%M:%S}",
                f"{item.last:%m-%d %H:%M:%S}",
                str(item.runs),
                str(item.resumed),
                str(item.lost),
                readable(item.busy_seconds),
                readable(item.idle_seconds),
            ]
            for item in found.workers
        ]
        table = _table(header, rows)
        if len(rows) > FEW_WORKERS:
            table = f"<details><summary>{len(rows)} workers</summary>{table}</details>"
        content = _place(drawn, "runs", figures.timeline_bars(found.runs), wide=True) + table
    return _section(
        "timeline",
        "Workers",
        "Gaps are idle time; a cross is where a worker was lost, a triangle where a trial went on "
        "after epochs that it had; a worker that was started again is a line of its own.",
        content,
    )


def _cost(found: Findings, _: Figures) -> str:
    paid = found.cost
    devices = sorted({item.device for item in found.records if item.device})
    hours = "CPU hours" if all(device == "cpu" for device in devices) else "GPU hours"
    would = paid.epochs - paid.repeated_epochs + paid.pruned_epochs
    spared = f" ({paid.pruned_epochs / would:.0%})" if would else ""
    known = paid.seconds + paid.idle_seconds
    idle = f" ({paid.idle_seconds / known:.0%})" if known else ""
    rows = [
        ["epochs trained", f"{paid.epochs:,}"],
        ["of these again, since the state of a run was lost", f"{paid.repeated_epochs:,}"],
        ["epochs saved by pruning", f"{paid.pruned_epochs:,}{spared}"],
        [f"{hours} spent on trials", in_hours(paid.seconds)],
        [f"{hours} saved by pruning, at each trial's own speed", in_hours(paid.pruned_seconds)],
        [f"{hours} that workers were idle between trials", in_hours(paid.idle_seconds) + idle],
        ["devices", ", ".join(devices) or "not recorded"],
    ]
    return _section(
        "cost",
        "What it cost",
        "If pruning saves less than half of the epochs, a stricter pruner is worth a try; much "
        "idle time means workers that wait for the database, for a suggestion or for the last "
        "trials. A worker counts as one device, also if two share one.",
        _table([], rows),
    )


def _reproduce(found: Findings, _: Figures) -> str:
    config = found.config
    # A name that needs no quotes in a shell.
    name, file = config.name, f"{config.name}.toml"
    own = config.trial.objective != DEFAULT_OBJECTIVE
    commands = [f"hpsearch run {file}", f"hpsearch export {name} --output best"]
    if found.ranked and not own:
        commands.insert(1, f"hpsearch replay {name} --trial {found.ranked[0].number}")
    rows = [
        *([package, version] for package, version in found.versions.items()),
        ["digest of the images", found.data_digest],
    ]
    study_file = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    with_replay = (
        "replay trains the best trial again, on a CPU to the same curve bit for bit; "
        if len(commands) > 2
        else ""
    )
    return _section(
        "reproduce",
        "How to reproduce it",
        f"Look first whether versions and data are the same. This study file makes the study anew; "
        f"{with_replay}export takes the best model out of this one.",
        f"<pre>{html.escape(chr(10).join(commands))}</pre>"
        f"{_table([], rows, text=2)}\n<p></p><details open><summary>{html.escape(file)}"
        f"</summary><pre>{html.escape(study_file)}</pre></details>",
    )


SECTIONS = (
    _best_so_far,
    _top,
    _learning_curves,
    _importance,
    _slices,
    _pair,
    _parallel_coordinates,
    _timeline,
    _cost,
    _reproduce,
)
"""In the order of the page; each puts its figures into what it is given."""


def readable(seconds: float) -> str:
    """For instance `45 s`, `3.2 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def in_hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


def shown_value(value: object) -> str:
    """A parameter's value with three digits, as a study file has it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
