"""Our own trial as a problem: a model of the recorded learning curves, and the curves themselves.

    python -m tests.benchmarks.table

prints how well the model predicts configurations that it has not seen (cross-validated).

The model is the mean of a Gaussian process and of extremely randomised trees, in log-odds of the
accuracy. The process fits better; the trees are there so that the truth is not of the very model
that some samplers fit.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.curves import SPACE, read_table
from tests.benchmarks.problems import EPOCHS, REFERENCES, Scale, random_points

Array = NDArray[np.float64]
Parameters = Mapping[str, Any]

VALIDATION_IMAGES = 500
OPTIMIZERS: Sequence[str] = SPACE["optimizer"]
PARTS = ("flip", "crop", "cutout", "resized-crop")
"""Of an augmentation's name."""
TREES = 100
KERNEL_STEPS = 12
"""Of L-BFGS; more take longer and predict no better."""
LOWEST = 0.02
"""Accuracy that log-odds are bounded at."""


class CurveModel:
    """Parameters to curves, learnt from rows of the table."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        from scipy.optimize import fmin_l_bfgs_b
        from sklearn.ensemble import ExtraTreesRegressor
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        def optimise(negative: Any, start: Array, bounds: Array) -> tuple[Array, float]:
            best, value, _ = fmin_l_bfgs_b(negative, start, bounds=bounds, maxiter=KERNEL_STEPS)
            return best, value

        self._good_rates = _good_rates(rows)
        points = self._features([row["parameters"] for row in rows])
        targets = log_odds(np.array([row["accuracies"] for row in rows]))
        lengths = np.full(points.shape[1], 3.0)
        kernel = ConstantKernel(1.0) * Matern(lengths, (0.3, 300), nu=2.5) + WhiteKernel(0.05)
        process = GaussianProcessRegressor(kernel, normalize_y=True, optimizer=optimise)
        trees = ExtraTreesRegressor(TREES, max_features=0.6, random_state=0)
        self._models = [make_pipeline(StandardScaler(), process), trees]
        for model in self._models:
            model.fit(points, targets)

    def predict(self, configurations: Sequence[Parameters]) -> Array:
        """Log-odds, shape (configurations, epochs)."""
        points = self._features(configurations)
        predicted: Array = np.mean([model.predict(points) for model in self._models], axis=0)
        return predicted

    def _features(self, configurations: Sequence[Parameters]) -> Array:
        rows = []
        for item in configurations:
            rate = math.log10(item["learning_rate"]) - self._good_rates[item["optimizer"]]
            decay = math.log10(item["weight_decay"])
            batch = math.log2(item["batch_size"] / 64)
            parts = item["augmentation"].split("+")
            rows.append(
                [
                    *(rate, decay, rate + decay, batch, item["dropout"]),
                    *(item["schedule"] == "one-cycle", item["color_jitter"]),
                    *(part in parts for part in PARTS),
                    *(item["optimizer"] == name for name in OPTIMIZERS),
                ]
            )
        return np.array(rows, dtype=np.float64)


def log_odds(accuracies: Array) -> Array:
    bounded = np.clip(accuracies, LOWEST, 1 - LOWEST)
    odds: Array = np.log(bounded / (1 - bounded))
    return odds


def _good_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Per optimizer, the mean log10 learning rate of the best quarter of its rows."""
    rates = {}
    for name in OPTIMIZERS:
        mine = [row for row in rows if row["parameters"]["optimizer"] == name]
        mine.sort(key=lambda row: -max(row["accuracies"]))
        best = mine[: max(3, round(len(mine) / 4))]
        rates[name] = float(np.mean([math.log10(row["parameters"]["learning_rate"]) for row in best]))
    return rates


# Noise between seeds -------------------------------------------------------------------------
