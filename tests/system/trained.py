"""A study whose one trial was really trained, in this process, on a few images."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import torch
from optuna.distributions import CategoricalDistribution

from data.dataset import load_dataset
from data.split import split_for_training
from model.train import train
from search.objective import trial_context
from studies.checkpoints import Checkpoint, open_checkpoints
from studies.config import parse_study
from studies.ownership import OwnedStorage
from studies.results import BEST_EPOCH, IMAGES_PER_SECOND, SEED
from studies.study import create_or_continue

EPOCHS = 3
SECONDS = 90.0
"""As it is recorded."""
# What learns something from 320 images.
PARAMETERS: dict[str, int | float | str] = {
    "width": 4,
    "optimizer": "muon",
    "learning_rate": 0.05,
    "momentum": 0.6,
    "schedule": "one-cycle",
    "batch_size": 32,
    "batch_norm_momentum": 0.3,
    "pooling": "average",
}


def trained_study(
    storage: OwnedStorage, name: str, source: str, root: Path, seed: int = 7
) -> Sequence[float]:
    """Create it, with the checkpoint of its best epoch.

    Returns:
        The validation accuracy after each epoch.
    """
    config = parse_study(
        {
            "name": name,
            "data": {"source": source, "validation_fraction": 0.2},
            "trial": {"epochs": EPOCHS},
            "space": PARAMETERS,
            "budget": {"trials": 1},
        },
        "the test",
    )
    dataset = load_dataset(source, root)
    data = split_for_training(dataset, config.data.validation_fraction, config.seed)
    opened, _ = create_or_continue(storage, config, dataset.digest, [])
    context = trial_context(config, data, torch.device("cpu"), seed)
    curve: list[float] = []
    for result in train(PARAMETERS, context):
        accuracy = result.validation_accuracy
        if accuracy > max(curve, default=-1.0):
            checkpoint = Checkpoint(result.weights, result.epoch, accuracy)
            open_checkpoints(opened, root, None).save(0, checkpoint)
        curve.append(accuracy)
    trial = optuna.create_trial(
        value=max(curve),
        params=PARAMETERS,
        distributions={key: CategoricalDistribution((of,)) for key, of in PARAMETERS.items()},
        intermediate_values=dict(enumerate(curve, start=1)),
        user_attrs={
            SEED: seed,
            BEST_EPOCH: 1 + curve.index(max(curve)),
            IMAGES_PER_SECOND: 1234,
        },
    )
    trial.datetime_start = datetime(2026, 1, 1, 12, 0, 0)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=SECONDS)
    opened.study.add_trial(trial)
    return curve
