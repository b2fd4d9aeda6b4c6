"""The shape of anything that can be searched: a generator of epochs.

    def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]

A study file names such a function in `[trial] objective`; `model.train:train` is the default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.split import TrainingData


@dataclass(frozen=True, slots=True)
class TrialContext:
    """What a trial is given beside its parameters."""

    data: TrainingData
    """On `device` already; in the host's memory if they do not fit there (see `Split.batch`)."""
    device: torch.device
    epochs: int
    seed: int
    """Of this trial: derived from the study's seed and the trial's number."""
    precision: str
    """`auto`, `fp32`, `bf16` or `fp16`."""
    deterministic: bool = False
    """Whether a GPU, too, is to give the same results each time; a CPU always does."""
    compile: bool = False
    """Whether to use `torch.compile`."""
    resume: Mapping[str, Any] | None = None
    """`EpochResult.state` of an earlier run of this trial, whose next epoch is to come first."""


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
    state: Mapping[str, Any] | None = None
    """All that later epochs depend on, in tensors, numbers, text, lists and dicts; valid as long.
    None if an interrupted trial has to begin anew."""
    learning_rate: float | None = None
    """After the epoch's last step, if it is known."""
    fallbacks: tuple[str, ...] = ()
    """What had to be done in another way than it was asked for, and may change the curve."""


class Diverged(Exception):
    """Raised by a trial whose loss is no longer finite; the message is the reason."""
