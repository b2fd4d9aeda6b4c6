import math

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import get_note

from studies.config import load_study_file
from studies.notes import BARS, note_rows, quoted, trial_note
from studies.results import CONFIRMS, DEVICE, DIVERGED, ERROR, IMAGES_PER_SECOND, WORKER
from tests.studies.trials import at

CONFIG = load_study_file("quickstart", {"trial.epochs": 4})


def trial(*accuracies: float, **attributes: object) -> FrozenTrial:
    found = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        intermediate_values=dict(enumerate(accuracies, start=1)),
        user_attrs=attributes,
    )
    found.datetime_start = at(0)
    return found


def test_a_note_says_what_the_trial_was_and_why_it_ended() -> None:
    ran = {DEVICE: "cpu", WORKER: "host-1", IMAGES_PER_SECOND: 1234}
    assert trial_note(trial(0.1, 0.5, 0.4, 0.45, **ran), CONFIG, "suggested", "complete") == (
        "Suggested.\n\n"
        "**Complete** after 4 epochs: best validation accuracy **50.00%**, in epoch 2.\n\n"
        "`▁█▆▇` (lowest 10.0%, highest 50.0%)\n\n"
        "Ran on `cpu`, by `host-1`, at 1,234 images/s."
    )
    pruned = trial_note(trial(0.1, 0.2), CONFIG, "suggested", "pruned")
    assert f"**Pruned** after 2 of 4 epochs: the {CONFIG.pruner.name} pruner gave it up" in pruned
    diverged = trial_note(trial(0.1, **{DIVERGED: "the loss is nan"}), CONFIG, "x", "diverged")
    assert "**Diverged** after 1 of 4 epochs: `the loss is nan`; best" in diverged
    failed = trial_note(trial(**{ERROR: "ValueError: no"}), CONFIG, "x", "failed")
    assert failed == (
        "X.\n\n**Failed** after 0 of 4 epochs: `ValueError: no`; no epoch has a result."
    )
    retrained = trial_note(trial(0.1, **{CONFIRMS: 3}), CONFIG, "x", "complete")
    assert retrained.startswith("A retraining of trial 3 of the search.")


@pytest.mark.parametrize(
    ("accuracies", "curve"),
    [
        ([0.5], None),
        ([math.nan, 0.5], None),
        ([0.5, 0.5], "`▁▁` (lowest 50.0%, highest 50.0%)"),
        ([0.1, math.nan, 0.8], "`▁·█` (lowest 10.0%, highest 80.0%)"),
        ([0.0, 1e-310], "`▁█` (lowest 0.0%, highest 0.0%)"),
        ([0.1, 0.9, *[0.1] * 97, 0.5], f"`█{'▁' * 48}▅` (lowest 10.0%, highest 90.0%)"),
        ([0.1, 0.2, *[math.nan, 0.1] * 25], f"`█{'▁' * 25}` (lowest 10.0%, highest 20.0%)"),
    ],
)
def test_a_note_shows_the_trial_s_curve(accuracies: list[float], curve: str | None) -> None:
    note = trial_note(trial(*accuracies), CONFIG, "suggested", "complete")
    assert curve in note if curve else "▁" not in note
    assert sum(note.count(bar) for bar in BARS) <= 50


@pytest.mark.parametrize("text", ["a`<b>\n`b", "`" * 9, "\x1b[0m", "x" * 10_000, "![](http://x)"])
def test_a_text_from_elsewhere_is_no_markdown(text: str) -> None:
    shown = quoted(text)
    assert shown[0] == shown[-1] == "`"
    assert "`" not in shown[1:-1]
    assert "\n" not in shown
    assert len(shown) < 600


def test_the_dashboard_reads_it() -> None:
    study = optuna.create_study()
    asked = study.ask()
    for key, value in note_rows(asked._trial_id, "**what** it was").items():
        study._storage.set_study_system_attr(study._study_id, key, value)
    assert get_note(asked) == "**what** it was"
