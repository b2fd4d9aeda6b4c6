"""Multi-fidelity functions in the shape of training, whose best configuration is known.

Each is a plain function from parameters to ten accuracies. What they have in common with training:
rates on a log scale, choices, whole numbers, divergence (flat at chance), plateaus, interactions,
noise between seeds; and in `crossing`, curves that deceive whoever judges them early.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.problems import EPOCHS, Scale, random_points

Array = NDArray[np.float64]
Parameters = Mapping[str, Any]

CHANCE = 0.1
MEDIAN_OF = 2_000  # random configurations
NOISE_PERSISTS = 0.5
"""Correlation of the noise of one epoch with the next one's."""
PROGRESS: Array = np.arange(1, EPOCHS + 1) / EPOCHS


@dataclass(frozen=True)
class Synthetic:
    name: str
    space: Mapping[str, Any]
    clean: Callable[[Parameters], Array]
    """Accuracy after each epoch without noise; the last is the highest."""
    optimum: Parameters
    noise: float
    """Standard deviation of an epoch's accuracy between seeds."""

    @cached_property
    def scale(self) -> Scale:
        values = [self.truth(point) for point in random_points(self.space, MEDIAN_OF)]
        return Scale(self.truth(self.optimum), float(np.median(values)))

    def curve(self, parameters: Parameters, seed: int) -> Array:
        draws = np.random.default_rng(seed).normal(size=EPOCHS)
        noise = np.empty(EPOCHS)
        noise[0] = draws[0]
        for epoch in range(1, EPOCHS):
            fresh = math.sqrt(1 - NOISE_PERSISTS**2) * draws[epoch]
            noise[epoch] = NOISE_PERSISTS * noise[epoch - 1] + fresh
        curve: Array = np.clip(self.clean(parameters) + self.noise * noise, 0.0, 1.0)
        return curve

    def truth(self, parameters: Parameters) -> float:
        return float(self.clean(parameters).max())


def _rise(final: float, progress: Array) -> Array:
    """From chance to a final accuracy, as progress goes from 0 to 1."""
    return CHANCE + max(final - CHANCE, 0.0) * progress


def _saturating(speed: float) -> Array:
    """Progress that is quick at first if speed is high, and a straight line if it is near 0."""
    progress: Array = np.expm1(-speed * PROGRESS) / math.expm1(-speed)
    return progress


# Rate: a rate that suits its solver, and nothing if it does not ------------------------------

SOLVER_RATE = {"sgd": 1e-1, "adam": 1e-3, "sign": 1e-4}
SOLVER_FINAL = {"sgd": 0.88, "adam": 0.90, "sign": 0.86}


def _rate(parameters: Parameters) -> Array:
    """The best rate depends on solver and batch; six times that diverges, a hundredth idles."""
    octaves = math.log2(parameters["batch"] / 64)
    best = SOLVER_RATE[parameters["solver"]] * 2 ** (octaves / 2)
    distance = math.log10(parameters["rate"] / best)
    if distance > 0.8:
        return np.full(EPOCHS, CHANCE)
    fit = math.exp(-0.5 * (distance / 0.6) ** 2)
    losses = (
        0.01 * octaves**2
        + 0.01 * (math.log10(parameters["decay"]) + 3) ** 2
        + 1.0 * (parameters["dropout"] - 0.05 * parameters["layers"]) ** 2
        + 0.004 * (parameters["layers"] - 4) ** 2
    )
    final = SOLVER_FINAL[parameters["solver"]] - losses
    return _rise(CHANCE + (final - CHANCE) * fit, _saturating(3 * 10**distance))


# Crossing: what learns fast ends low ---------------------------------------------------------


def _crossing(parameters: Parameters) -> Array:
    """With a cycle, high rates stay near chance for half the epochs and end best."""
    rate = math.log10(parameters["rate"]) / 4 + 1  # 0 to 1
    shared = (
        0.3 * (parameters["momentum"] - 0.9) ** 2 * 100
        + 0.02 * (math.log10(parameters["decay"]) + 4) ** 2
        + 0.002 * (parameters["shift"] - 3) ** 2
    )
    if parameters["schedule"] == "constant":
        final = 0.72 - 1.2 * (rate - 0.3) ** 2 - shared
        return _rise(final, _saturating(5.0))
    if rate > 0.9:
        return np.full(EPOCHS, CHANCE)
    final = 0.92 - 0.9 * (rate - 0.8) ** 2 - 0.3 * (parameters["warmup"] - 0.2) ** 2 - shared
    return _rise(final, PROGRESS ** (1 + 4 * rate))


# Plateau: most of the space is at chance; a wide hill, and a higher one that is narrow -----


def _plateau(parameters: Parameters) -> Array:
    """Accuracy leaves chance the sooner, the better the configuration is."""
    place = np.array(
        [
            math.log10(parameters["rate"]) / 5 + 1,
            parameters["momentum"],
            (parameters["units"] - 1) / 31,
            parameters["dropout"],
        ]
    )
    if parameters["kind"] == "narrow":
        hill = 0.8 * math.exp(-np.sum(((place - [0.7, 0.8, 15 / 31, 0.2]) / 0.3) ** 2))
    elif parameters["kind"] == "wide":
        hill = 0.6 * math.exp(-np.sum(((place - [0.4, 0.4, 20 / 31, 0.5]) / 0.6) ** 2))
    else:
        hill = 0.3 * math.exp(-np.sum(((place - 0.5) / 0.6) ** 2))
    hill *= 1.0 if parameters["norm"] else 0.9
    delay = 0.6 * (1 - hill)
    return _rise(CHANCE + hill, np.clip((PROGRESS - delay) / (1 - delay), 0.0, 1.0))


# Hartmann: six numbers that interact, four hills, of which the early epochs hide two ---------

HARTMANN_SCALE = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
HARTMANN_PLACE = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
HARTMANN_HEIGHT = np.array([1.0, 1.2, 3.0, 3.2])
HARTMANN_HIDDEN = np.array([0.5, 0.0, 2.0, 0.5])
"""How much lower the hills are at the very start."""
HARTMANN_BEST = (0.20168952, 0.15001069, 0.47687398, 0.27533243, 0.31165162, 0.65730054)
HARTMANN_MAXIMUM = 3.32236801
ACTIVATION_LOSS = {"relu": 0.02, "gelu": 0.0, "tanh": 0.08}


def _hartmann(parameters: Parameters) -> Array:
    place = np.array(
        [
            math.log10(parameters["rate"]) / 4 + 1,
            math.log10(parameters["decay"]) / 4 + 1,
            *(parameters[name] for name in ("momentum", "dropout", "smoothing", "warmup")),
        ]
    )
    hills = np.exp(-(HARTMANN_SCALE * (place - HARTMANN_PLACE) ** 2).sum(axis=1))
    heights = HARTMANN_HEIGHT - (1 - PROGRESS[:, np.newaxis]) * HARTMANN_HIDDEN
    value = heights @ hills / HARTMANN_MAXIMUM - ACTIVATION_LOSS[parameters["activation"]]
    curve: Array = CHANCE + 0.8 * np.clip(value, 0.0, None) * _saturating(3.0)
    return curve


def _log(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high, "log": True}


def _between(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high}


SYNTHETIC: Mapping[str, Synthetic] = {
    problem.name: problem
    for problem in (
        Synthetic(
            "synthetic-rate",
            {
                "rate": _log(1e-5, 1.0),
                "solver": ["sgd", "adam", "sign"],
                "batch": _log(16, 512),
                "decay": _log(1e-6, 1e-1),
                "dropout": _between(0.0, 0.5),
                "layers": _between(1, 8),
            },
            _rate,
            {
                "rate": 1e-3,
                "solver": "adam",
                "batch": 64,
                "decay": 1e-3,
                "dropout": 0.2,
                "layers": 4,
            },
            noise=0.01,
        ),
        Synthetic(
            "synthetic-crossing",
            {
                "rate": _log(1e-4, 1.0),
                "schedule": ["constant", "one-cycle"],
                "warmup": _between(0.0, 0.5),
                "momentum": _between(0.8, 0.99),
                "decay": _log(1e-6, 1e-2),
                "shift": _between(0, 8),
            },
            _crossing,
            {
                "rate": 10**-0.8,
                "schedule": "one-cycle",
                "warmup": 0.2,
                "momentum": 0.9,
                "decay": 1e-4,
                "shift": 3,
            },
            noise=0.015,
        ),
        Synthetic(
            "synthetic-plateau",
            {
                "rate": _log(1e-5, 1.0),
                "momentum": _between(0.0, 1.0),
                "units": _between(1, 32),
                "dropout": _between(0.0, 1.0),
                "kind": ["wide", "narrow", "none", "other"],
                "norm": [False, True],
            },
            _plateau,
            {
                "rate": 10**-1.5,
                "momentum": 0.8,
                "units": 16,
                "dropout": 0.2,
                "kind": "narrow",
                "norm": True,
            },
            noise=0.01,
        ),
        Synthetic(
            "synthetic-hartmann",
            {
                "rate": _log(1e-4, 1.0),
                "decay": _log(1e-4, 1.0),
                **{
                    name: _between(0.0, 1.0)
                    for name in ("momentum", "dropout", "smoothing", "warmup")
                },
                "activation": ["relu", "gelu", "tanh"],
            },
            _hartmann,
            {
                "rate": 10 ** (4 * HARTMANN_BEST[0] - 4),
                "decay": 10 ** (4 * HARTMANN_BEST[1] - 4),
                "momentum": HARTMANN_BEST[2],
                "dropout": HARTMANN_BEST[3],
                "smoothing": HARTMANN_BEST[4],
                "warmup": HARTMANN_BEST[5],
                "activation": "gelu",
            },
            noise=0.02,
        ),
    )
}
