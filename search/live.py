"""The live view of a run: what each worker does, how far the study is, what is best so far."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.launch import Slot
from studies.config import StudyConfig
from studies.results import (
    Summary,
    TrialRecord,
    rank,
    readable_seconds,
    summarise,
    varied_values,
)
from studies.text import counted, readable
from studies.wording import which_pruner


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker of this run, and what it does."""

    slot: Slot
    trial: TrialRecord | None
    state: str
    """`running`, `waits`, `starts again` or `ended`."""


@dataclass(frozen=True, slots=True)
class View:
    """All that is shown at one moment."""

    config: StudyConfig
    storage: str
    """Its URL, without a password."""
    records: Sequence[TrialRecord]
    workers: Sequence[WorkerRow]
    now: datetime
    """UTC, without a time zone, as the study's times are."""
    run_started: float
    """On the clock `time.time`."""
    interruptions: int
    trouble: str | None
    """What is wrong with the storage, if anything: the records are from before."""


def render(view: View) -> RenderableType:
    """The view as something that rich can print."""
    summary = summarise(view.records)
    local = {row.trial.number for row in view.workers if row.trial}
    elsewhere = [
        record
        for record in view.records
        if record.state == "running" and record.number not in local and record.worker
    ]
    parts: list[RenderableType] = [
        Text.assemble(
            (view.config.name, "bold"),
            f"  {view.config.sampler.name} sampler, {which_pruner(view.config.pruner.name)}, "
            f"{view.config.data.source}, {view.storage}",
            overflow="ellipsis",
            no_wrap=True,
        ),
        _progress(view, summary),
        counts_line(summary),
        _best(summary, view.config),
        _workers(view, elsewhere),
        *([_whole((view.trouble, "bold red"))] if view.trouble else []),
        Text(_hint(view.interruptions), style="dim"),
    ]
    return Group(*parts)


def _whole(*parts: str | tuple[str, str]) -> Text:
    """In as many lines as it takes. The console breaks none by itself, and they would be cut."""
    return Text.assemble(*parts, no_wrap=False, overflow="fold")


def _progress(view: View, summary: Summary) -> RenderableType:
    line = Table.grid(padding=(0, 2))
    total = view.config.budget.trials
    left = seconds_left(view)
    remaining = "" if left is None else f"about {readable_seconds(left)} left"
    if total is None:
        line.add_row(counted(summary.finished, "trial"), remaining)
    else:
        done = min(summary.finished, total)
        line.add_row(
            ProgressBar(total=total, completed=done, width=40), f"{done} of {total}", remaining
        )
    return line


def counts_line(summary: Summary) -> Text:
    """How many trials are in each state."""
    counts = [
        (summary.complete, "complete", "green"),
        (summary.pruned, "pruned", "yellow"),
        (summary.diverged, "diverged", "magenta"),
        (summary.failed, "failed", "red"),
        (summary.running, "running", "cyan"),
        (summary.waiting, "waiting", "blue"),
    ]
    return Text("  ").join(
        Text(f"{count} {name}", style=color if count else "dim") for count, name, color in counts
    )


def _best(summary: Summary, config: StudyConfig) -> Text:
    if summary.best is None or summary.best.value is None:
        return Text("no trial complete yet", style="dim")
    return _whole(
        "best ",
        (f"{summary.best.value:.2%}", "bold green"),
        f" validation, trial {summary.best.number}: {readable_parameters(summary.best, config)}",
    )


def _workers(view: View, elsewhere: Sequence[TrialRecord]) -> Table:
    table, epochs = _workers_table(), view.config.trial.epochs
    for row in view.workers:
        name = f"{row.slot.index} ({row.slot.device})"
        if row.trial is None:
            table.add_row(name, "-" if row.state == "running" else row.state, style="dim")
        else:
            table.add_row(name, *_trial_cells(row.trial, epochs, view.now))
    for record in elsewhere:
        table.add_row(record.worker or "", *_trial_cells(record, epochs, view.now))
    return table


def running_table(records: Sequence[TrialRecord], epochs: int, now: datetime) -> Table:
    """The trials that are running, one a line, and by whom.

    A worker that gives no sign of life has its trial until another notices.

    Args:
        epochs: of a full trial.
        now: UTC, without a time zone.
    """
    table = _workers_table()
    for record in records:
        if record.state == "running":
            *cells, left = _trial_cells(record, epochs, now)
            if record.silent_since:
                # By the database's clock, which may be ahead of this machine's.
                silent = max((now - record.silent_since).total_seconds(), 0.0)
                left = f"silent for {readable_seconds(silent)}"
            table.add_row(record.worker or "-", *cells, left)
    return table


def _workers_table() -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("worker", overflow="fold")
    for name in ("trial", "epoch", "validation", "images/s", "time left"):
        table.add_column(name, justify="right")
    return table


def _trial_cells(record: TrialRecord, epochs: int, now: datetime) -> tuple[str, ...]:
    left = trial_seconds_left(record, epochs, now)
    return (
        str(record.number),
        f"{len(record.accuracies)}/{epochs}",
        f"{record.accuracies[-1]:.2%}" if record.accuracies else "",
        f"{record.images_per_second:,.0f}" if record.images_per_second else "",
        "" if left is None else readable_seconds(left),
    )


def _hint(interruptions: int) -> str:
    if interruptions == 0:
        return "Ctrl-C stops; the same command continues."
    if interruptions == 1:
        return (
            "Stopping: running trials are handed back after a short epoch. Ctrl-C again: at once."
        )
    return "Stopping now."


def trial_seconds_left(record: TrialRecord, epochs: int, now: datetime) -> float | None:
    """From the epochs done and the time since the trial's start; None before the first."""
    done = len(record.accuracies) - record.epochs_before
    if done < 1 or record.started is None or not record.images_per_second:
        return None
    elapsed = (now - record.started).total_seconds()
    return max(elapsed / done * (epochs - len(record.accuracies)), 0.0)


def seconds_left(view: View) -> float | None:
    """Until the budget is spent, from how long the trials of this study took; None if unknown.

    Of running ones, from their epochs so far.
    """
    durations = [
        record.seconds
        for record in view.records
        if record.seconds is not None and record.state in ("complete", "pruned", "diverged")
    ]
    running = [record for record in view.records if record.state == "running"]
    lefts = [trial_seconds_left(item, view.config.trial.epochs, view.now) for item in running]
    if not durations:
        durations = [
            (view.now - item.started).total_seconds() + left
            for item, left in zip(running, lefts, strict=True)
            if item.started is not None and left is not None
        ]
    budget, estimates = view.config.budget, []
    here = sum(1 for row in view.workers if row.state != "ended")
    if budget.trials is not None and durations and here:
        average = sum(durations) / len(durations)
        begun = [average if left is None else left for left in lefts]
        to_begin = max(budget.trials - summarise(view.records).finished - len(running), 0)
        at_once = max(here, len(running))  # Others may run on other machines.
        estimates.append(max((sum(begun) + to_begin * average) / at_once, *begun, 0.0))
    if budget.minutes is not None:
        estimates.append(max(view.run_started + 60 * budget.minutes - time.time(), 0.0))
    return min(estimates, default=None)


def readable_parameters(record: TrialRecord, config: StudyConfig) -> str:
    """On one line, the parameters that the study varies."""
    return readable(varied_values(record, config))


def results_table(records: Sequence[TrialRecord], config: StudyConfig, top: int) -> Table:
    """The best trials, one a line."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("trial", "validation", "epochs"):
        table.add_column(name, justify="right")
    table.add_column("parameters")
    for record in rank(records)[:top]:
        table.add_row(
            str(record.number),
            f"{record.value or 0:.2%}",
            str(len(record.accuracies)),
            readable_parameters(record, config),
        )
    return table
