"""The note of each trial that optuna-dashboard shows: what the trial was, and why it ended."""

import math
from typing import Any

from optuna.trial import FrozenTrial

from studies.config import StudyConfig
from studies.results import CONFIRMS, LOSSES, TrialRecord, record
from studies.text import printable, shortened

LONGEST_QUOTE = 500  # characters
LONGEST_CURVE = 50
"""Bars; of longer ones each is the best of two epochs or more."""
BARS = "▁▂▃▄▅▆▇█"
NO_NUMBER = "·"


def note_rows(trial_id: int, note: str) -> dict[str, Any]:
    """The attributes of the study in which the dashboard looks for a trial's note.

    As `optuna_dashboard.save_note` writes them, one after the other and with questions between.
    """
    return {f"dashboard:{trial_id}:note_ver": 1, f"dashboard:{trial_id}:note_str:0": note}


def trial_note(trial: FrozenTrial, config: StudyConfig, origin: str, end: str) -> str:
    """In Markdown.

    Args:
        trial: with all that was reported of it.
        origin: where its parameters come from, in words.
        end: its state by now; see `TrialRecord`.
    """
    known = record(trial)
    confirmed = trial.user_attrs.get(CONFIRMS)
    if isinstance(confirmed, int):
        origin = f"a retraining of trial {confirmed} of the search"
    lines = [
        f"{origin[0].upper()}{origin[1:]}.",
        _ended(known, config, end),
        _curve(known),
        _ran(trial, known),
    ]
    return "\n\n".join(line for line in lines if line)


def _ended(known: TrialRecord, config: StudyConfig, end: str) -> str:
    epochs, done = config.trial.epochs, len(known.accuracies)
    numbers = [accuracy for accuracy in known.accuracies if math.isfinite(accuracy)]
    reached = "no epoch has a result"
    if numbers:
        best = max(numbers)
        epoch = known.accuracies.index(best) + 1
        reached = f"best validation accuracy **{best:.2%}**, in epoch {epoch}"
    if end == "complete":
        return f"**Complete** after {epochs} epochs: {reached}."
    why = f": {quoted(known.reason)}" if known.reason else ""
    if end == "pruned":
        why = f": the {config.pruner.name} pruner gave it up"
    return f"**{end.capitalize()}** after {done} of {epochs} epochs{why}; {reached}."


def _curve(known: TrialRecord) -> str:
    """The validation accuracy after each epoch as a row of bars, with the lowest and the highest of
    all epochs.

    The dashboard draws the curves of all trials on the study's page, and none on a trial's.
    """
    numbers = [accuracy for accuracy in known.accuracies if math.isfinite(accuracy)]
    if len(numbers) < 2:
        return ""
    low, high = min(numbers), max(numbers)
    epochs = -(-len(known.accuracies) // LONGEST_CURVE)
    bars = []
    for start in range(0, len(known.accuracies), epochs):
        finite = filter(math.isfinite, known.accuracies[start : start + epochs])
        share = (max(finite, default=math.nan) - low) / (high - low or 1.0)
        bars.append(BARS[round(share * (len(BARS) - 1))] if math.isfinite(share) else NO_NUMBER)
    return f"`{''.join(bars)}` (lowest {low:.1%}, highest {high:.1%})"


def _ran(trial: FrozenTrial, known: TrialRecord) -> str:
    parts = []
    if known.device:
        parts.append(f"on {quoted(known.device)}")
    if known.worker:
        parts.append(f"by {quoted(known.worker)}")
    if known.images_per_second:
        parts.append(f"at {known.images_per_second:,.0f} images/s")
    earlier = len(known.earlier_runs)
    if earlier:
        times = "once" if earlier == 1 else f"{earlier} times"
        lost = trial.user_attrs.get(LOSSES)
        workers = f", {lost} of them since its worker was lost" if isinstance(lost, int) else ""
        parts.append(f"taken up again {times}{workers}")
    return f"Ran {', '.join(parts)}." if parts else ""


def quoted(text: str) -> str:
    """A text from elsewhere, in which Markdown is not read."""
    words = " ".join(printable(text).replace("`", "'").split())
    return f"`{shortened(words, LONGEST_QUOTE)}`" if words else ""
