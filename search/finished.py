"""A model as it is to be written: its files, each compared with the network that it came from."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.dataset import Normalisation
from data.errors import UserError
from data.weights import packed
from model.evaluate import Accuracies
from model.graph import GRAPH_FILES, WEIGHTS_FILE, Trained, written
from model.hyperparameters import parse_hyperparameters
from search.prepare import Prepared
from studies.config import DEFAULT_OBJECTIVE, StudyConfig
from studies.export import Model
from studies.results import TrialRecord

COMPARED = 64
"""Images, on which an exported model is compared with the network that it came from."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Graphs:
    """Which graphs a folder is to hold, beside the weights."""

    formats: frozenset[str] = frozenset()
    """Of `model.graph.GRAPH_FILES`."""
    preprocessing: bool = False
    """Whether they take uint8 images and give probabilities."""


NO_GRAPHS = Graphs()


@dataclass(frozen=True, slots=True)
class Finished:
    """A model that can be written, with what is said of it."""

    best: TrialRecord
    model: Model
    test: Accuracies | None
    differences: Mapping[str, float]
    retrained: bool = False


def check_default_objective(config: StudyConfig, option: str) -> None:
    """Refuse objectives of the user's own.

    What one does with the data, whether it can do without validation images, and what its weights
    are, is not known here; nor is code run that only the database names.

    Raises:
        UserError: the study's objective is not the default; the message names `option`.
    """
    if config.trial.objective != DEFAULT_OBJECTIVE:
        raise UserError(
            f"study {config.name!r} runs {config.trial.objective!r}: {option} knows models of "
            f"{DEFAULT_OBJECTIVE!r} alone"
        )


def packed_model(
    prepared: Prepared,
    best: TrialRecord,
    weights: Mapping[str, Tensor],
    description: dict[str, Any],
    test: Accuracies | None,
    graphs: Graphs,
) -> Finished:
    """The files of a model, each compared with the network on training images.

    `description` becomes that of the files too.

    Raises:
        UserError: a file does not compute what the network does.
    """
    if prepared.opened.config.trial.objective != DEFAULT_OBJECTIVE:
        model = Model({WEIGHTS_FILE: packed(weights, {})}, description)
        return Finished(best, model, test, {})
    trained = Trained(
        parse_hyperparameters(best.parameters),
        weights,
        len(description["data"]["classes"]),
        Normalisation(**description["data"]["normalisation"]),
    )
    images = prepared.dataset.train.images
    some = torch.linspace(0, len(images) - 1, min(len(images), COMPARED)).long()
    for format_name in sorted(graphs.formats):
        logger.info("trial %d: its graph, by %s", best.number, format_name)
    files, differences = written(trained, graphs.formats, graphs.preprocessing, images[some])
    description["files"] = {
        name: {"largest_difference": difference, "images": len(some)}
        for name, difference in differences.items()
    }
    for format_name in graphs.formats:
        description["files"][GRAPH_FILES[format_name]]["preprocessing"] = graphs.preprocessing
    return Finished(best, Model(files, description), test, differences)
