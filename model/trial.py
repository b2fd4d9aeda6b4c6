"""The shape of anything that can be searched: a generator of epochs.

    def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]

A study file names such a function in `[trial] objective`; `model.train:train` is the default.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from data.split import TrainingData


@dataclass(frozen=True, slots=True)
class TrialContext:
    """What a trial is given beside its parameters."""

    data: TrainingData
    """On `device` already."""
    device: torch.device
    epochs: int
    seed: int
    """Of this trial: derived from the study's seed and the trial's number."""
    precision: str
    """`auto`, `fp32` or `bf16`."""


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What a trial yields after each epoch."""

    epoch: int
    """From 1 to `TrialContext.epochs`."""
    validation_accuracy: float
    """In [0, 1]; NaN if there are no validation images (`hpsearch export` on all of them)."""
    training_loss: float
    """Mean over the epoch's images."""
    images_per_second: float
    """Training images, without validation."""
    weights: Mapping[str, Tensor]
    """The model's state after this epoch; valid until the next epoch is asked for."""


class Diverged(Exception):
    """Raised by a trial whose loss is no longer finite; the message is the reason."""
