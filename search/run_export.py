"""`hpsearch export`: the confirmed model, or those of the best trials, or one trained anew."""

import logging
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch

from data.errors import UserError
from data.files import DEFAULT_ROOT
from search.device import taken_device
from search.export import (
    Exported,
    any_device,
    export_trial,
    exported,
    finish,
    usable_trials,
)
from search.finished import NO_GRAPHS, Graphs, check_default_objective
from search.prepare import Prepared, join
from search.retrain import retrain
from studies.artifacts import kept_evaluation
from studies.checkpoints import Checkpoint, CheckpointDirectory, open_checkpoints, weights_name
from studies.chosen import Chosen, choose, of_winner
from studies.confirmation import Confirmation
from studies.export import (
    check_output,
    replaced_by_export,
    several_name,
    with_evaluation,
    write_export,
    write_exports,
)
from studies.results import TrialRecord
from studies.study import OpenedStudy, best_record, open_study

logger = logging.getLogger(__name__)


def export_study(
    opened: OpenedStudy,
    output: Path,
    root: Path = DEFAULT_ROOT,
    place: str | None = None,
    source: str | None = None,
    on_validation_too: bool = False,
    best: int | None = None,
    trial: int | None = None,
    graphs: Graphs = NO_GRAPHS,
) -> list[Exported]:
    """Run `hpsearch export`: the confirmed model if there is one, else that of the best trial.

    Args:
        output: the folder to write.
        root: where data sets and checkpoints are kept.
        place: of the checkpoints, if not below `root`.
        source: where this machine has the data, if not where the study says.
        on_validation_too: train that configuration anew, on training and validation images.
        best: so many of the best trials instead, in a folder each.
        trial: the model of this one instead.

    Raises:
        Diverged: so trained, it diverged, and nothing was written.
        UserError: there is no such trial, its weights are not here, or `output` cannot be written.
    """
    # Before the data are read.
    chosen = choose(opened, best, trial)
    if on_validation_too:
        check_default_objective(opened.config, "--on train+validation")
    if graphs.formats:
        check_default_objective(opened.config, f"--format {min(graphs.formats)}")
    check_output(output)
    earlier = replaced_by_export(output)
    if earlier:
        logger.info("%s: %s is replaced once all is well", output, earlier)
    _warn_of_better(opened, chosen)
    prepared = join(open_study(chosen.study, opened.storage), root, source)
    confirmation = asdict(chosen.confirmation) if chosen.confirmation else None
    if on_validation_too:
        items = chosen.ranked[: chosen.count or 1]
        with taken_device(root) as device:
            models = [retrain(prepared, item, device, confirmation, graphs) for item in items]
    else:
        checkpoints = open_checkpoints(prepared.opened, root, place, to_write=False)
        if trial is not None:
            _check_kept(prepared.opened, checkpoints, trial)
        models = [
            finish(prepared, item, checkpoint, any_device(), confirmation, graphs)
            for item, checkpoint in _usable(prepared.opened, chosen, checkpoints)
        ]
    kept = kept_evaluation(opened, root)
    if chosen.count is None:
        (only,) = models
        write_export(output, with_evaluation(only.model, kept))
        written = exported(prepared, only, output, chosen.ranked[0])
        return [replace(written, chosen_as=chosen.chosen_as)]
    named = {
        several_name(position, len(models), item.best.number): item
        for position, item in enumerate(models, start=1)
    }
    write_exports(output, {name: with_evaluation(item.model, kept) for name, item in named.items()})
    return [
        replace(
            exported(prepared, item, output / name, item.best),
            baseline=None,
            chosen_as=f"{position}. ",
        )
        for position, (name, item) in enumerate(named.items(), start=1)
    ]


def _warn_of_better(opened: OpenedStudy, chosen: Chosen) -> None:
    """If the search has one by now that was not confirmed."""
    first = best_record(opened).number if chosen.confirmation else None
    if chosen.confirmation and first not in {item.trial for item in chosen.confirmation.candidates}:
        logger.warning(
            "trial %d ranks first in the search by now, but is not among the confirmed ones; "
            "to include it: hpsearch confirm %s",
            first,
            opened.config.name,
        )


def _check_kept(opened: OpenedStudy, checkpoints: CheckpointDirectory, number: int) -> None:
    if number not in checkpoints.trial_numbers():
        raise UserError(
            f"{checkpoints.store.location(weights_name(number))}: no weights of trial {number}; "
            f"the study keeps those of its best {opened.config.checkpoints.keep} "
            "(checkpoints.keep); --on train+validation trains it anew"
        )


def export_confirmed(
    prepared: Prepared,
    confirmation: Confirmation,
    checkpoints: CheckpointDirectory,
    output: Path,
    kept: Path,
    device: torch.device,
) -> Exported:
    """Write the winner's best model, or its next best whose checkpoint can be used."""
    ranked = of_winner(prepared.opened, confirmation)
    return export_trial(prepared, ranked, checkpoints, output, kept, device, asdict(confirmation))


def _usable(
    opened: OpenedStudy, chosen: Chosen, checkpoints: CheckpointDirectory
) -> list[tuple[TrialRecord, Checkpoint]]:
    """As many as are wanted of the best trials whose checkpoints can be used."""
    count = chosen.count or 1
    usable = list(islice(usable_trials(chosen.ranked, checkpoints), count))
    if len(usable) < count:
        raise UserError(
            f"study {chosen.study!r}: trials whose weights can be used: {len(usable)} (it keeps "
            f"those of the best {opened.config.checkpoints.keep}, checkpoints.keep); give "
            f"--best {len(usable)} or fewer, or add --on train+validation, which needs none"
        )
    return usable
