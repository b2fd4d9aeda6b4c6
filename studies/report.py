"""The report of a study: what it has found, as a page with a sentence on what to look for in each
section, and the same in numbers."""

import html
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import tomli_w

from studies import figures, space_figures
from studies.analysis import (
    FEWEST_FOR_IMPORTANCE,
    MOST_DRAWN,
    which_parameters,
    with_result,
)
from studies.config import DEFAULT_OBJECTIVE, StudyConfig
from studies.confirmation import spread
from studies.findings import Findings, as_document, at_their_ends
from studies.page import (
    RISES,
    Figures,
    page,
    place,
    section,
    short_name,
    table,
    tiles,
    write_text,
)
from studies.results import TrialRecord, readable_seconds, summarise, varied_values
from studies.text import counted, readable_value, shortened
from studies.timeline import runs_of, seconds_taken
from studies.wording import which_pruner

TOP = 10
"""Trials in the table of the best."""
FEW_TRIALS = 100
"""Too few for advice on what decides. Of the recorded curves, what is most important in a draw of
100 is so in all 300 three times in four; of 50, less often than not."""
FEW_WORKERS = 12
"""Whose times are shown without being asked for."""
LONGEST_REASON = 100  # characters, in a hover text
AXIS_WIDTH = 100  # pixels from one parallel coordinate to the next, which a choice's name fits in
BESIDE_AXES = 180  # pixels: margins, and the scale of colours
TIMELINE_WIDTH = 700  # pixels


def write_report(found: Findings, output: Path, numbers: Path | None = None) -> None:
    """Write the report as an HTML file.

    Args:
        numbers: a file for the same as JSON.

    Raises:
        UserError: a file cannot be written.
    """
    write_text(output, report_page(found))
    if numbers:
        document = as_document(found, TOP)
        write_text(numbers, json.dumps(document, indent=2, allow_nan=False) + "\n")


def report_page(found: Findings) -> str:
    """The whole HTML file. Without a network it shows all that it has."""
    drawn: Figures = {}
    body = [_head(found), *(part(found, drawn) for part in sections(found))]
    notes = {item.number: about(item, found.config) for item in found.records}
    return page(found.config.name, body, drawn, notes)


def about(item: TrialRecord, config: StudyConfig) -> str:
    """What a hover text says of a trial, with its parameters that vary; for plotly."""
    lines = [
        f"{item.state}, {len(item.accuracies)} of {config.trial.epochs} epochs",
        *([shortened(item.reason, LONGEST_REASON)] if item.reason else []),
        *(f"{name} {readable_value(value)}" for name, value in varied_values(item, config).items()),
    ]
    return "<br>".join(html.escape(line) for line in lines)


def _head(found: Findings) -> str:
    config, summary = found.config, summarise(found.records)
    best, baseline = summary.best, found.baseline
    budget = f" of {config.budget.trials}" if config.budget.trials else ""
    shown = [(f"{summary.finished}{budget}", "trials finished")]
    if best and best.value is not None:
        shown.append((f"{best.value:.2%}", f"best validation accuracy, trial {best.number}"))
        if baseline and baseline.state == "complete" and baseline.number != best.number:
            reached = baseline.value or 0.0
            gained = 100 * (best.value - reached)
            shown.append((f"{gained:+.2f}", f"points above the notebook's {reached:.2%}"))
    counts = {
        name: getattr(summary, name)
        for name in ("complete", "pruned", "diverged", "failed", "running", "waiting")
    }
    shown += [(str(count), name) for name, count in counts.items() if count]
    return (
        f"<h1>{html.escape(config.name)}</h1>\n"
        f'<p class="about">{html.escape(config.data.source)}, {config.trial.epochs} epochs a '
        f"trial, {config.sampler.name} sampler, {which_pruner(config.pruner.name)}; as of "
        f"{found.now:%Y-%m-%d %H:%M} UTC</p>\n{tiles(shown)}\n"
    )


def _best_so_far(found: Findings, drawn: Figures) -> str:
    look = "A line that still rises says that more trials would pay"
    if found.baseline:
        look += (
            "; its distance from the dashed line is the gain over the notebook's configuration, by "
            "what the study was given to start from and by what the search has found"
        )
    content = "No trial is complete yet."
    if found.ranked:
        over_epochs = figures.best_so_far(found.steps, "epochs", found.baseline)
        over_time = figures.best_so_far(found.steps, "seconds", found.baseline)
        content = (
            f'<div class="side-by-side">{place(drawn, "best-over-epochs", over_epochs)}'
            f"{place(drawn, 'best-over-time', over_time)}</div>"
        )
    return section("best-so-far", "Best so far", f"{look}.", content)


def _top(found: Findings, _: Figures) -> str:
    content, same = "No trial is complete yet.", ""
    if found.ranked:
        top = found.ranked[:TOP]
        columns = {
            name: [readable_value(item.parameters.get(name, "")) for item in top]
            for name in found.varied
        }
        # A column of one value says no more than a few words, and leaves the others less room.
        alike = {
            name: cells[0]
            for name, cells in columns.items()
            if len(cells) > 1 and len(set(cells)) == 1
        }
        if alike:
            said = ", ".join(f"{name} {value}" for name, value in alike.items())
            same = f"; all of these have {html.escape(said)}"
        names = [name for name in columns if name not in alike]
        rows = [
            [
                str(item.number),
                f"{item.value or 0:.2%}",
                _took(item, found.now),
                *(columns[name][index] for name in names),
            ]
            for index, item in enumerate(top)
        ]
        content = table(["trial", "validation", "time", *map(short_name, names)], rows)
    return section(
        "top",
        "The best trials",
        f"Look for what they have in common{same}. {_again(found)}.",
        content,
    )


def _took(item: TrialRecord, now: datetime) -> str:
    return readable_seconds(seconds_taken(runs_of(item, now)))


def _again(found: Findings) -> str:
    """What has been trained again with new seeds, or can be."""
    shown = found.confirmation
    if found.confirms:
        which = "They are retrainings, with new seeds, of the best trials of another study"
        if shown is None:
            return which
        means = (f"trial {item.trial} {spread(item.mean, item.std)}" for item in shown.candidates)
        return f"{which}; on average {', '.join(means)}; {shown.headline}"
    confirm = f"<code>hpsearch confirm {html.escape(found.config.name)}</code>"
    again = "trains them again with new seeds"
    if shown:
        again = f"has trained them again; {shown.headline}"
    return f"The best of many noisy trials is partly luck: {confirm} {again}"


def _learning_curves(found: Findings, drawn: Figures) -> str:
    best = found.ranked[0] if found.ranked else None
    content = "No trial has reported an epoch yet."
    if any(item.value is not None for item in found.records):
        figure = figures.learning_curves(found.records, best, found.baseline)
        content = place(drawn, "curves", figure)
    return section(
        "learning-curves",
        "Learning curves",
        f"If the best still rise at the last epoch, {RISES}; if a faint, pruned curve was about to "
        "overtake others, the pruner is too eager.",
        content,
    )


def _importance(found: Findings, drawn: Figures) -> str:
    content = (
        f"It takes {FEWEST_FOR_IMPORTANCE} trials that ended, of different results, and a "
        "parameter that varies."
    )
    if found.importances:
        most = dict(list(found.importances.items())[:MOST_DRAWN])
        content = place(drawn, "importances", figures.importance_bars(most))
    ended = summarise(found.records).finished
    advice = "what is near zero may be held fixed in the next study"
    if ended < FEW_TRIALS:
        advice = f"of {counted(ended, 'trial')} it says little, and other ones may say otherwise"
    return section(
        "importance",
        f"Importance of {which_parameters(len(found.importances))}",
        "How much each decides whether a trial is among the best (PED-ANOVA, over pruned and "
        "diverged trials too, which the dashboard's figure of Optuna's own leaves out): "
        f"{advice}.",
        content,
    )


def _slices(found: Findings, drawn: Figures) -> str:
    best = found.ranked[0] if found.ranked else None
    content = "No trial is complete or pruned yet, or no parameter varies."
    if found.varied and with_result(found.records, found.config, []):
        places = [
            place(
                drawn,
                f"slice-{index}",
                space_figures.parameter_slice(found.records, found.config, name, best),
            )
            for index, name in enumerate(found.varied[:MOST_DRAWN])
        ]
        content = f'<div class="small">{"".join(places)}</div>'
    return section(
        "slices",
        f"Each of {_which_varied(found)}",
        "Look where the highest points are (the star is the best trial): at the edge of a range, "
        "widen it. Of pruned trials, grey, it is what they had reached; those that run, failed or "
        "diverged are left out, here and in the two sections below.",
        content,
    )


def _which_varied(found: Findings) -> str:
    return which_parameters(len(found.varied), are_ranked=bool(found.importances))


def _pair(found: Findings, drawn: Figures) -> str:
    content = "It takes two parameters whose importance is known."
    if found.surface:
        best = found.ranked[0] if found.ranked else None
        reached = at_their_ends(found.records)
        figure = space_figures.pair(reached, found.config, found.surface, best)
        content = place(drawn, "pair-surface", figure)
    return section(
        "pair",
        "The two most important parameters together",
        "A slanting ridge says that the two have to be chosen together. The colour is what a trial "
        "has reached (the star is the best), and between them the mean of those nearby; where none "
        "is near, it is blank. A pruned trial counts with what it had reached and what complete "
        "ones typically gained from that epoch on.",
        content,
    )


def _parallel_coordinates(found: Findings, drawn: Figures) -> str:
    content, names = "No trial is complete or pruned yet, or no parameter varies.", found.varied
    if names and with_result(found.records, found.config, names[:MOST_DRAWN]):
        figure = space_figures.parallel_coordinates(found.records, found.config, names[:MOST_DRAWN])
        least = AXIS_WIDTH * (len(figure.data[0].dimensions) - 1) + BESIDE_AXES
        content = place(drawn, "parallel", figure, least)
    return section(
        "parallel-coordinates",
        f"Parallel coordinates of {_which_varied(found)}",
        "Drag along the accuracy's axis to see the best trials alone: where their lines meet, they "
        "agree. The most important parameter is on the left.",
        content,
    )


def _timeline(found: Findings, drawn: Figures) -> str:
    content = "No trial has begun yet."
    if found.runs:
        header = ["worker", "from (UTC)", "to", "runs", "resumed", "lost", "busy", "idle"]
        rows = [
            [
                item.worker,
                f"{item.first:%m-%d %H:%M:%S}",
                f"{item.last:%m-%d %H:%M:%S}",
                *(str(count) for count in (item.runs, item.resumed, item.lost)),
                readable_seconds(item.busy_seconds),
                readable_seconds(item.idle_seconds),
            ]
            for item in found.workers
        ]
        times = table(header, rows)
        if len(rows) > FEW_WORKERS:
            times = f"<details><summary>{len(rows)} workers</summary>{times}</details>"
        again = found.restarts
        counts = (
            f"<p>Workers that were lost: {again.workers_lost}; trials that were taken up again: "
            f"{again.trials_taken_up_again}.</p>"
        )
        content = place(drawn, "runs", figures.timeline_bars(found.runs), TIMELINE_WIDTH)
        content += counts + times
    return section(
        "timeline",
        "Workers",
        "Gaps are idle time; a cross is where a worker was lost, a triangle where a trial went on "
        "after epochs that it had; a worker that was started again is a line of its own.",
        content,
    )


def _cost(found: Findings, _: Figures) -> str:
    paid = found.cost
    devices = sorted({item.device for item in found.records if item.device})
    # A trial that went on elsewhere has had two.
    kinds = {kind for item in devices for kind in item.split(", then ")}
    hours = "CPU hours" if "cpu" in kinds else "GPU hours"
    if len({kind == "cpu" for kind in kinds}) != 1:  # Both, or none is known.
        hours = "hours"
    would = sum(len(item.accuracies) for item in found.records) + paid.pruned_epochs
    spared = f" ({paid.pruned_epochs / would:.0%})" if would else ""
    known = paid.seconds + paid.idle_seconds
    idle = f" ({paid.idle_seconds / known:.0%})" if known else ""
    rows = [
        ["epochs trained", f"{paid.epochs:,}"],
        ["of these again, since the state of a run was lost", f"{paid.repeated_epochs:,}"],
        ["epochs saved by pruning", f"{paid.pruned_epochs:,}{spared}"],
        [f"{hours} spent on trials", _in_hours(paid.seconds)],
        [f"{hours} saved by pruning, at each trial's own speed", _in_hours(paid.pruned_seconds)],
        [f"{hours} that workers were idle between trials", _in_hours(paid.idle_seconds) + idle],
        ["devices", ", ".join(devices) or "not recorded"],
    ]
    return section(
        "cost",
        "What it cost",
        "Look at what pruning saved: a stricter pruner saves more, and stops the best trial more "
        "often. Much idle time means workers that waited for the database, for a suggestion or for "
        "a trial to take. A worker counts as one device, also if two share one.",
        table([], rows),
    )


def _in_hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


def _reproduce(found: Findings, _: Figures) -> str:
    config = found.config
    # A name that needs no quotes in a shell.
    name, file = config.name, f"{config.name}.toml"
    commands = [f"hpsearch run {file}", f"hpsearch export {name} --output best"]
    with_replay = ""
    if found.ranked and config.trial.objective == DEFAULT_OBJECTIVE:
        commands.insert(1, f"hpsearch replay {name} --trial {found.ranked[0].number}")
        same = ", to the same curve bit for bit" if found.ranked[0].device == "cpu" else ""
        with_replay = f"replay trains the best trial again{same}; "
    rows = [
        *([package, version] for package, version in found.versions.items()),
        ["digest of the images", found.data_digest],
    ]
    study_file = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    return section(
        "reproduce",
        "How to reproduce it",
        "Look first whether versions and data are the same. Save the study file below as "
        f"<code>{html.escape(file)}</code>: it continues the study in its storage, and begins a "
        f"new one, with other suggestions, in another; {with_replay}export takes the best model "
        "out of this one.",
        f"<pre>{html.escape(chr(10).join(commands))}</pre>"
        f"{table([], rows, text=2)}\n<p></p><details open><summary>{html.escape(file)}"
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
OF_A_SEARCH = (_best_so_far, _importance, _slices, _pair, _parallel_coordinates)
"""Which say nothing of a few configurations that are trained again and again."""


def sections(found: Findings) -> list[Callable[[Findings, Figures], str]]:
    """Those of a study's report."""
    return [part for part in SECTIONS if not (found.confirms and part in OF_A_SEARCH)]
