"""The final model: the chosen configuration trained anew, on training and validation images."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from data.split import whole_for_training
from model.evaluate import accuracies
from model.train import train
from model.trial import Diverged, EpochResult
from search.device import placed
from search.export import describe_trial, of_test, rebuild
from search.finished import NO_GRAPHS, Finished, Graphs, packed_model
from search.objective import trial_context
from search.prepare import Prepared
from studies.results import BEST_EPOCH, IMAGES_PER_SECOND, SEED, TrialRecord
from studies.study import VERSIONS, versions

logger = logging.getLogger(__name__)


def retrain(
    prepared: Prepared,
    best: TrialRecord,
    device: torch.device,
    confirmation: Mapping[str, Any] | None = None,
    graphs: Graphs = NO_GRAPHS,
) -> Finished:
    """Train a complete trial's configuration on all training images: the model of its last epoch.

    With the trial's seed and number of epochs. No images are left to choose an epoch by, so that
    the last one it is. Its test accuracy is measured once, at the end, and decides nothing.

    Args:
        confirmation: what retrainings of the configuration showed, for the folder's description.

    Raises:
        Diverged: loss or weights were no longer finite.
        UserError: a graph does not compute what the network does.
    """
    opened = prepared.opened
    attributes = opened.study.get_trials(deepcopy=False)[best.number].user_attrs
    data = whole_for_training(prepared.dataset)
    logger.info(
        "trial %d anew on %d training and validation images: %s",
        best.number,
        len(data.train),
        best.parameters,
    )
    context = trial_context(opened.config, placed(data, device), device, attributes[SEED])
    losses = []
    started = time.monotonic()
    last: EpochResult | None = None
    for last in train(best.parameters, context):
        losses.append(last.training_loss)
        logger.info(
            "epoch %d of %d, loss %.4f, %.0f images/s",
            last.epoch,
            context.epochs,
            last.training_loss,
            last.images_per_second,
        )
    seconds = time.monotonic() - started
    assert last is not None
    weights = {name: tensor.cpu() for name, tensor in last.weights.items()}
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        # By the very last step, of which no loss tells.
        raise Diverged(f"the weights were no longer finite after epoch {last.epoch}")
    model = rebuild(best.parameters, weights, len(data.classes), device)
    test = accuracies(model, prepared.dataset.test, data.normalisation)
    before: dict[str, Any] = {
        "trained_on": "train",
        "validation_accuracy": best.value,
        "validation_accuracy_per_epoch": list(best.accuracies),
        "best_epoch": attributes[BEST_EPOCH],
        "versions": opened.study.user_attrs[VERSIONS],
    }
    if confirmation:
        before["confirmation"] = confirmation
    results = {
        "trained_on": "train+validation",
        "validation_accuracy": None,
        "best_epoch": None,
        "training_loss_per_epoch": losses,
        "training_seconds": seconds,
        IMAGES_PER_SECOND: round(last.images_per_second),
        **of_test(test),
        "before": before,
    }
    description = describe_trial(prepared, best, results, data.normalisation)
    description["versions"] = versions()
    finished = packed_model(prepared, best, weights, description, test, graphs)
    return replace(finished, retrained=True)
