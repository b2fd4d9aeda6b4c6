"""The report of a study: one HTML file that needs nothing else, and the same in numbers."""

import html
import json
from collections.abc import Iterator
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from data.errors import UserError
from data.files import write_whole
from studies.config import StudyConfig, is_fixed
from studies.findings import Findings, as_document
from studies.results import TrialRecord, summarise
from studies.sections import SECTIONS, TOP, Figures, shown_value
from studies.text import printable, shortened

TEMPLATE = Path(__file__).with_suffix(".html")
LONGEST_REASON = 100  # characters, in a hover text


def write_report(found: Findings, output: Path, numbers: Path | None = None) -> None:
    """Write the report as an HTML file.

    Args:
        numbers: a file for the same as JSON.

    Raises:
        UserError: a file cannot be written.
    """
    _write(output, page(found))
    if numbers:
        document = as_document(found, TOP)
        _write(numbers, json.dumps(document, indent=2, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def page(found: Findings) -> str:
    """The whole HTML file. Without a network it shows all that it has."""
    drawn: Figures = {}
    body = [_head(found), *(section(found, drawn) for section in SECTIONS)]
    data = {
        "figures": {place: figure.to_plotly_json() for place, figure in drawn.items()},
        "trials": {item.number: about(item, found.config) for item in found.records},
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=html.escape(found.config.name),
        body=printable("\n".join(body)),
        # Else a text in it could end the script element.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
    )


def _head(found: Findings) -> str:
    config, summary = found.config, summarise(found.records)
    best, baseline = summary.best, found.baseline
    budget = f" of {config.budget.trials}" if config.budget.trials else ""
    tiles = [("trials finished", f"{summary.finished}{budget}")]
    if best and best.value is not None:
        tiles.append((f"best validation accuracy, trial {best.number}", f"{best.value:.2%}"))
        gains = baseline and baseline.state == "complete" and baseline.number != best.number
        if gains and baseline and baseline.value is not None:
            gained = 100 * (best.value - baseline.value)
            tiles.append((f"points above the notebook's {baseline.value:.2%}", f"{gained:+.2f}"))
    counts = {
        name: getattr(summary, name)
        for name in ("complete", "pruned", "diverged", "failed", "running", "waiting")
    }
    tiles += [(name, str(count)) for name, count in counts.items() if count]
    shown = "".join(
        f'<div class="tile"><b>{value}</b><span>{html.escape(label)}</span></div>'
        for label, value in tiles
    )
    return (
        f"<h1>{html.escape(config.name)}</h1>\n"
        f'<p class="about">{html.escape(config.data.source)}, {config.trial.epochs} epochs a '
        f"trial, {config.sampler.name} sampler, {config.pruner.name} pruner; as of "
        f"{found.now:%Y-%m-%d %H:%M} UTC</p>\n"
        f'<div class="tiles">{shown}</div>\n'
    )


def about(item: TrialRecord, config: StudyConfig) -> str:
    """What a hover text says of a trial, with its parameters that vary; for plotly."""
    lines = [
        f"{item.state}, {len(item.accuracies)} of {config.trial.epochs} epochs",
        *([shortened(item.reason, LONGEST_REASON)] if item.reason else []),
        *(f"{name} {value}" for name, value in _parameters(item, config)),
    ]
    return "<br>".join(html.escape(line) for line in lines)


def _parameters(item: TrialRecord, config: StudyConfig) -> Iterator[tuple[str, str]]:
    for name, value in item.parameters.items():
        if name in config.space and not is_fixed(config.space[name]):
            yield name, shown_value(value)
