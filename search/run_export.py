"""`hpsearch export`: the confirmed model, or that of the best trial, or one trained anew."""

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from search.device import taken_device
from search.export import Exported, any_device, export_best, export_trial
from search.prepare import Prepared, join
from search.retrain import check_retrainable, export_retrained
from studies.checkpoints import CheckpointDirectory, open_checkpoints
from studies.confirmation import Confirmation, confirmation_of, confirming_name
from studies.export import check_output
from studies.ownership import OwnedStorage
from studies.results import CONFIRMS, rank, record
from studies.study import best_record, open_study

logger = logging.getLogger(__name__)


def export_study(
    storage: OwnedStorage,
    name: str,
    root: Path,
    place: str | None,
    output: Path,
    source: str | None,
    on_validation_too: bool = False,
) -> Exported:
    """Run `hpsearch export`: the confirmed model if there is one, else that of the best trial.

    Args:
        place: of the checkpoints, if not below `root`.
        on_validation_too: train that configuration anew, on training and validation images.

    Raises:
        Diverged: so trained, it diverged, and nothing was written.
    """
    opened = open_study(storage, name)
    best = best_record(opened)  # Says so before the data are read if there is none.
    if on_validation_too:
        check_retrainable(opened.config)
        check_output(output)
    confirmation = confirmation_of(opened)
    if confirmation:
        if all(best.number != candidate.trial for candidate in confirmation.candidates):
            logger.warning(
                "trial %d ranks first in the search by now, but is not among the confirmed ones; "
                "to include it: hpsearch confirm %s",
                best.number,
                name,
            )
        prepared = join(storage, confirming_name(name), root, source)
        if not on_validation_too:
            checkpoints = open_checkpoints(prepared.opened, root, place, to_write=False)
            return export_confirmed(prepared, confirmation, checkpoints, output, any_device())
        best = record(prepared.opened.study.get_trials(deepcopy=False)[confirmation.trial])
    else:
        prepared = join(storage, name, root, source)
        if not on_validation_too:
            checkpoints = open_checkpoints(prepared.opened, root, place, to_write=False)
            return export_best(prepared, checkpoints, output, any_device())
    with taken_device(root) as device:
        shown = asdict(confirmation) if confirmation else None
        return export_retrained(prepared, best, output, device, shown)


def export_confirmed(
    prepared: Prepared,
    confirmation: Confirmation,
    checkpoints: CheckpointDirectory,
    output: Path,
    device: torch.device,
) -> Exported:
    """Write the winner's best model, or its next best whose checkpoint can be used."""
    trials = prepared.opened.study.get_trials(deepcopy=False)
    best = record(trials[confirmation.trial])
    of_winner = [
        record(trial)
        for trial in trials
        if trial.user_attrs.get(CONFIRMS) == confirmation.winner.trial
        and trial.number != confirmation.trial
    ]
    ranked = [best, *rank(of_winner)]
    return export_trial(prepared, ranked, checkpoints, output, device, asdict(confirmation))
