"""Taking the best model out of a study, with its accuracy measured once more."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.dataset import Normalisation
from data.errors import UserError
from model.evaluate import Accuracies, accuracies, accuracy
from model.graph import WEIGHTS_FILE
from model.hyperparameters import parse_hyperparameters
from model.resnet import ResNet
from model.train import build_model
from search.finished import NO_GRAPHS, Finished, Graphs, packed_model
from search.live import readable_parameters
from search.prepare import Prepared, has_baseline
from studies.checkpoints import Checkpoint, CheckpointDirectory
from studies.config import DEFAULT_OBJECTIVE, StudyConfig
from studies.export import check_output, with_evaluation, write_export
from studies.results import CONFIRMS, SEED, TrialRecord, record
from studies.study import VERSIONS, OpenedStudy, ranked_records
from studies.text import shortened
from studies.timeline import runs_of, seconds_taken

LONGEST_REASON = 300  # characters
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and how good it is."""

    config: StudyConfig
    output: Path
    best: TrialRecord
    test: Accuracies | None
    """None for an objective of the user's own, whose model is not known here."""
    differences: Mapping[str, float]
    """Of each file: the largest difference of its probabilities to the network's."""
    baseline: TrialRecord | None
    """Trial 0, the notebook's configuration, if it is complete and not the best."""
    confirms: int | None
    """If it is a retraining: the number of its trial in the search."""
    instead_of: int | None = None
    """The trial that ranks before it, whose checkpoint cannot be used."""
    retrained: bool = False
    """Whether the model was trained on the validation images too, after the search."""
    chosen_as: str = "best: "
    """What stands before it when it is described."""


def export_best(
    prepared: Prepared,
    checkpoints: CheckpointDirectory,
    output: Path,
    kept: Path,
    device: torch.device,
) -> Exported:
    """Write the model of the best trial to the folder `output`; see `export_trial`."""
    ranked = ranked_records(prepared.opened)
    return export_trial(prepared, ranked, checkpoints, output, kept, device)


def export_trial(
    prepared: Prepared,
    ranked: Sequence[TrialRecord],
    checkpoints: CheckpointDirectory,
    output: Path,
    kept: Path,
    device: torch.device,
    confirmation: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the model of the first of these complete trials whose checkpoint can be used.

    Its accuracies are measured from the weights that are exported; that on the test images decides
    nothing.

    Args:
        output: the folder to write.
        kept: as for `with_evaluation`.
        confirmation: what its retrainings showed, for the folder's description.

    Raises:
        UserError: no checkpoint can be used, or `output` is something else.
        OSError: the checkpoints cannot be reached.
    """
    check_output(output)
    best, checkpoint = next(usable_trials(ranked, checkpoints))
    finished = finish(prepared, best, checkpoint, device, confirmation, NO_GRAPHS)
    write_export(output, with_evaluation(finished.model, kept))
    return exported(prepared, finished, output, ranked[0])


def exported(prepared: Prepared, finished: Finished, output: Path, first: TrialRecord) -> Exported:
    """What is said of a model that was written to a folder.

    Args:
        first: the trial that ranks first of those that it was chosen from.
    """
    opened, best = prepared.opened, finished.best
    return Exported(
        opened.config,
        output,
        best,
        finished.test,
        finished.differences,
        baseline_to_show(opened, best),
        confirms(opened, best),
        first.number if best is not first else None,
        finished.retrained,
    )


def finish(
    prepared: Prepared,
    best: TrialRecord,
    checkpoint: Checkpoint,
    device: torch.device,
    confirmation: Mapping[str, Any] | None,
    graphs: Graphs,
) -> Finished:
    """A trial's model as it is to be written, measured on the test images.

    Raises:
        UserError: the checkpoint is not of the trial's network; or a graph does not compute what
            the network does.
    """
    test = None
    if prepared.opened.config.trial.objective == DEFAULT_OBJECTIVE:
        count = len(prepared.dataset.test)
        name = prepared.opened.config.name
        logger.info(
            "trial %d of study %s: its accuracy on %d test images", best.number, name, count
        )
        model = checked_model(prepared, best, checkpoint, device)
        test = accuracies(model, prepared.dataset.test, prepared.data.normalisation)
    results = {
        "trained_on": "train",
        "validation_accuracy": best.value,
        "validation_accuracy_per_epoch": list(best.accuracies),
        "best_epoch": checkpoint.epoch,
        "training_seconds": _training_seconds(best),
        "images_per_second": best.images_per_second,
        **of_test(test),
    }
    description = describe_trial(prepared, best, results, prepared.data.normalisation)
    if confirmation:
        description["confirmation"] = confirmation
    return packed_model(prepared, best, checkpoint.weights, description, test, graphs)


def _training_seconds(best: TrialRecord) -> float | None:
    """Of all runs of the trial; None if the first is not recorded."""
    runs = runs_of(best)
    return seconds_taken(runs) if runs and not runs[0].epochs_before else None


def usable_trials(
    ranked: Sequence[TrialRecord], checkpoints: CheckpointDirectory
) -> Iterator[tuple[TrialRecord, Checkpoint]]:
    """Those of these trials whose checkpoint is whole and of its best epoch, in this order.

    Raises:
        UserError: there is none; the message is of the very first.
        OSError: the checkpoints cannot be reached.
    """
    present = checkpoints.trial_numbers()
    troubles: list[UserError] = []
    found = False
    for item in ranked:
        # That the others have none is as it should be.
        if item.number not in present and item is not ranked[0]:
            continue
        try:
            checkpoint = usable_checkpoint(item, checkpoints)
        except UserError as error:
            troubles.append(error)
            continue
        for trouble in troubles:
            logger.warning("%s; the next best is trial %d", trouble, item.number)
        troubles, found = [], True
        yield item, checkpoint
    if not found:
        raise troubles[0]


def usable_checkpoint(item: TrialRecord, checkpoints: CheckpointDirectory) -> Checkpoint:
    """
    Raises:
        UserError: a complete trial's checkpoint is missing, damaged, or not of its best epoch.
    """
    checkpoint = checkpoints.load(item.number)
    if checkpoint.validation_accuracy != item.value:
        raise UserError(
            f"the checkpoint of trial {item.number} is of {checkpoint.validation_accuracy:.2%}, "
            f"but the study recorded {item.value:.2%}: that of its best epoch was not written"
        )
    return checkpoint


def of_test(test: Accuracies | None) -> dict[str, float | None]:
    """The accuracies on the test images, as the folder's description has them."""
    return {
        "test_accuracy": test.plain if test else None,
        "test_accuracy_with_flips": test.with_flips if test else None,
    }


def test_accuracy(
    prepared: Prepared, best: TrialRecord, checkpoint: Checkpoint, device: torch.device
) -> float:
    """Accuracy on the test images, in [0, 1], of a model that was checked."""
    model = checked_model(prepared, best, checkpoint, device)
    return accuracy(model, prepared.dataset.test, prepared.data.normalisation)


def checked_model(
    prepared: Prepared, best: TrialRecord, checkpoint: Checkpoint, device: torch.device
) -> ResNet:
    """The model of a checkpoint; a warning if its validation accuracy is another one here."""
    data = prepared.data
    model = rebuild(best.parameters, checkpoint.weights, len(data.classes), device)
    validation = accuracy(model, data.validation, data.normalisation)
    if round(abs(validation - checkpoint.validation_accuracy) * len(data.validation)) > 0:
        logger.warning(
            "trial %d of study %s: its worker measured %.2f%% on the validation images, this "
            "machine %.2f%%",
            best.number,
            prepared.opened.config.name,
            100 * checkpoint.validation_accuracy,
            100 * validation,
        )
    return model


def rebuild(
    parameters: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    classes: int,
    device: torch.device,
) -> ResNet:
    """The trained network of a trial of the default objective.

    Raises:
        UserError: the parameters are not those of a network with such weights.
    """
    try:
        model = build_model(parse_hyperparameters(parameters), classes)
        model.load_state_dict(dict(weights))
    except (RuntimeError, TypeError, ValueError) as error:
        reason = shortened(" ".join(str(error).split()), LONGEST_REASON)
        raise UserError(
            f"the trial's parameters and its checkpoint are not of one network: {reason}"
        ) from error
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def describe_trial(
    prepared: Prepared,
    best: TrialRecord,
    results: Mapping[str, Any],
    normalisation: Normalisation,
) -> dict[str, Any]:
    """What `trial.json` says: the trial, its results, and all that is needed to repeat it."""
    opened = prepared.opened
    attributes = opened.study.get_trials(deepcopy=False)[best.number].user_attrs
    parameters = best.parameters
    if opened.config.trial.objective == DEFAULT_OBJECTIVE:
        # With what the study left to the defaults, so that the folder speaks for itself.
        parameters = asdict(parse_hyperparameters(parameters))
    return {
        "study": opened.config.name,
        "trial": best.number,
        "parameters": parameters,
        **results,
        "seed": attributes.get(SEED),
        "data": {
            "source": opened.config.data.source,
            "digest": prepared.dataset.digest,
            "test_images": len(prepared.dataset.test),
            "classes": list(prepared.data.classes),
            "normalisation": asdict(normalisation),
            "validation_fraction": opened.config.data.validation_fraction,
            "split_seed": opened.config.seed,
        },
        "objective": opened.config.trial.objective,
        "versions": opened.study.user_attrs[VERSIONS],
    }


def confirms(opened: OpenedStudy, best: TrialRecord) -> int | None:
    """The trial of the search that this one retrains, if it does."""
    number: int | None = opened.study.get_trials(deepcopy=False)[best.number].user_attrs.get(
        CONFIRMS
    )
    return number


def baseline_to_show(opened: OpenedStudy, best: TrialRecord) -> TrialRecord | None:
    """The notebook's configuration, if it is complete and not the best."""
    baseline = baseline_record(opened)
    shown = baseline and baseline.state == "complete" and baseline.number != best.number
    return baseline if shown else None


def baseline_record(opened: OpenedStudy) -> TrialRecord | None:
    """Trial 0, if it has begun and is the notebook's configuration."""
    config = opened.config
    if not has_baseline(config):
        return None
    first = next(iter(opened.study.get_trials(deepcopy=False)), None)
    known = first and first.params and CONFIRMS not in first.user_attrs
    return record(first) if first and known else None


def describe(exported: Exported) -> str:
    """The best trial, and where it lies, in a few lines."""
    best = exported.best
    reached = f"validation accuracy {best.value or 0:.2%}"
    if exported.retrained:
        reached += " in the search; trained anew on training and validation images"
    if exported.test:
        reached += (
            f", test accuracy {exported.test.plain:.2%} ({exported.test.with_flips:.2%} averaged "
            "with mirror images)"
        )
    trial = f"{exported.chosen_as}trial {best.number}"
    if exported.instead_of is not None:
        trial = (
            f"best: trial {exported.instead_of}, whose weights are lost; in its place trial "
            f"{best.number}"
        )
    if exported.confirms is not None:
        trial = (
            f"confirmed: trial {exported.confirms}; of its retrainings the best"
            f"{'' if exported.instead_of is None else ' whose weights are not lost'}, trial "
            f"{best.number} of study {exported.config.name!r}"
        )
    lines = [
        f"{trial}, {reached}",
        f"  {readable_parameters(best, exported.config)}",
    ]
    if exported.baseline:
        value = exported.baseline.value or 0
        lines.append(f"  the notebook's configuration (trial 0): validation accuracy {value:.2%}")
    lines.append(f"model: {exported.output}")
    # The weights are read back as they were, or there is no export.
    graphs = {file: far for file, far in exported.differences.items() if file != WEIGHTS_FILE}
    if graphs:
        compared = ", ".join(f"{file} {far:.2g}" for file, far in graphs.items())
        lines.append(
            f"  largest difference to the network's probabilities of training images: {compared}"
        )
    if exported.test:
        lines.append(f"  to use it: hpsearch predict {exported.output} IMAGE...")
    return "\n".join(lines)


def any_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
