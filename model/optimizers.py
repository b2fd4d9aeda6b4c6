"""Optimizers and learning-rate schedules by the names that a study file uses."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn, optim

SGD_MOMENTUM = 0.9

ONE_CYCLE_START = 0.2  # of the peak rate
ONE_CYCLE_PEAK = 0.25  # of all steps

OptimizerFactory = Callable[[Iterable[nn.Parameter], float, float], optim.Optimizer]


def _nesterov(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> optim.Optimizer:
    return optim.SGD(
        parameters, learning_rate, SGD_MOMENTUM, weight_decay=weight_decay, nesterov=True
    )


def _of(optimizer: Callable[..., optim.Optimizer]) -> OptimizerFactory:
    return lambda parameters, learning_rate, weight_decay: optimizer(
        parameters, lr=learning_rate, weight_decay=weight_decay
    )


OPTIMIZERS: Mapping[str, OptimizerFactory] = {
    "sgd": _nesterov,
    "adam": _of(optim.Adam),
    "adamw": _of(optim.AdamW),
    "rmsprop": _of(optim.RMSprop),
    "adagrad": _of(optim.Adagrad),
    "adadelta": _of(optim.Adadelta),
    "adamax": _of(optim.Adamax),
    "nadam": _of(optim.NAdam),
}
"""Name to a function of (parameters, learning rate, weight decay). SGD has Nesterov momentum 0.9;
all else is torch's default, which the notebook used."""


def constant(progress: float) -> float:
    """The notebook's schedule: always the full rate."""
    return 1.0


def one_cycle(progress: float) -> float:
    """A triangle: up to the peak rate in the first quarter of the steps, then down to zero.

    Smith, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
    2018; with linear parts and the peak's place as in airbench (Jordan, 2024).
    """
    if progress < ONE_CYCLE_PEAK:
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * progress / ONE_CYCLE_PEAK
    return max((1 - progress) / (1 - ONE_CYCLE_PEAK), 0.0)


SCHEDULES: Mapping[str, Callable[[float], float]] = {"constant": constant, "one-cycle": one_cycle}
"""Name to a function of progress (steps done of all steps, in [0, 1]) that gives a factor of the
learning rate."""


def make_scheduler(
    schedule: str, optimizer: optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler to be stepped once after each of `steps` optimizer steps."""
    factor = SCHEDULES[schedule]
    return optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step / steps))
