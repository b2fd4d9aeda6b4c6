"""Optimizers and learning-rate schedules by the names that a study file uses."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import nn, optim

from model.lion import Lion
from model.muon import Muon

ONE_CYCLE_START = 0.2  # of the peak rate

MOMENTUM = 0.9  # of sgd and muon, if nothing else is said

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class OptimizerFactory(Protocol):
    def __call__(
        self,
        parameters: Parameters,
        learning_rate: float,
        weight_decay: float,
        momentum: float = MOMENTUM,
    ) -> optim.Optimizer: ...


def _nesterov(
    parameters: Parameters, learning_rate: float, weight_decay: float, momentum: float = MOMENTUM
) -> optim.Optimizer:
    # torch refuses Nesterov's momentum if it is 0, which is no momentum at all.
    return optim.SGD(
        parameters, learning_rate, momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )


def _muon(
    parameters: Parameters, learning_rate: float, weight_decay: float, momentum: float = MOMENTUM
) -> optim.Optimizer:
    return Muon(parameters, learning_rate, momentum, weight_decay)


def _of(optimizer: Callable[..., optim.Optimizer]) -> OptimizerFactory:
    def make(
        parameters: Parameters,
        learning_rate: float,
        weight_decay: float,
        momentum: float = MOMENTUM,
    ) -> optim.Optimizer:
        return optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)

    return make


OPTIMIZERS: Mapping[str, OptimizerFactory] = {
    "sgd": _nesterov,
    "adam": _of(optim.Adam),
    "adamw": _of(optim.AdamW),
    "rmsprop": _of(optim.RMSprop),
    "adagrad": _of(optim.Adagrad),
    "adadelta": _of(optim.Adadelta),
    "adamax": _of(optim.Adamax),
    "nadam": _of(optim.NAdam),
    "lion": _of(Lion),
    "muon": _muon,
}
"""Name to a function of (parameters or groups, learning rate, weight decay, momentum of sgd and
muon). SGD's momentum is Nesterov's; all else of torch's optimizers is torch's default, which the
notebook used."""


def make_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    momentum: float = MOMENTUM,
) -> optim.Optimizer:
    """An optimizer of all trained parameters, with weight decay of filters and matrices alone.

    Batch-norm parameters and biases, which are those of one dimension, have none: Goyal et al.,
    "Accurate, Large Minibatch SGD", 2017, section 5.1; He et al., "Bag of Tricks for Image
    Classification with Convolutional Neural Networks", 2019, section 3.1.

    Args:
        momentum: of sgd and muon.
    """
    parameters = [one for one in model.parameters() if one.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [one for one in parameters if one.ndim > 1]},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name](groups, learning_rate, weight_decay, momentum)


def constant(progress: float, peak_fraction: float) -> float:
    """The notebook's schedule: always the full rate."""
    return 1.0


def one_cycle(progress: float, peak_fraction: float) -> float:
    """A triangle: up to the peak rate, then down to zero, both linear.

    Smith, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
    2018; with linear parts and a start at a fifth of the peak as in airbench (Jordan, 2024).
    """
    if progress < peak_fraction:
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * progress / peak_fraction
    return max((1 - progress) / (1 - peak_fraction), 0.0)


def one_cycle_cosine(progress: float, peak_fraction: float) -> float:
    """Up to the peak rate as `one_cycle`, then down to zero by half a cosine.

    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017; without
    restarts.
    """
    if progress < peak_fraction:
        return one_cycle(progress, peak_fraction)
    return (1 + math.cos(math.pi * (1 - one_cycle(progress, peak_fraction)))) / 2


SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "constant": constant,
    "one-cycle": one_cycle,
    "one-cycle-cosine": one_cycle_cosine,
}
"""Name to a function of progress (steps done of all steps, in [0, 1]) and the peak's place in it
that gives a factor of the learning rate."""


def make_scheduler(
    schedule: str, optimizer: optim.Optimizer, steps: int, peak_fraction: float
) -> optim.lr_scheduler.LambdaLR:
    """A scheduler to be stepped once after each of `steps` optimizer steps."""
    factor = SCHEDULES[schedule]
    return optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step / steps, peak_fraction))
