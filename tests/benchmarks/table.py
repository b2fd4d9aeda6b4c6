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
        rates[name] = float(
            np.mean([math.log10(row["parameters"]["learning_rate"]) for row in best])
        )
    return rates


# Noise between seeds -------------------------------------------------------------------------

# Four rows trained with three seeds each (`seeds.jsonl`): the standard deviation of the log-odds
# between seeds, smoothed over epochs. While a cycle's rate is high a seed moves an epoch by 0.06
# in accuracy, at its end by 0.01; the best epoch by 0.02.
NOISE: Mapping[str, Array] = {
    "constant": np.full(EPOCHS, 0.12),
    "one-cycle": np.array([0.10, 0.22, 0.30, 0.30, 0.26, 0.22, 0.18, 0.15, 0.08, 0.05]),
}
NOISE_PERSISTS = 0.1
"""Correlation of the noise of one epoch with the next one's (0.11, 0.03, 0.14 at lags 1 to 3)."""


def noise(schedule: str, seed: int) -> Array:
    """What a seed adds to the log-odds of each epoch."""
    draws = np.random.default_rng(seed).normal(size=EPOCHS)
    for epoch in range(1, EPOCHS):
        fresh = math.sqrt(1 - NOISE_PERSISTS**2) * draws[epoch]
        draws[epoch] = NOISE_PERSISTS * draws[epoch - 1] + fresh
    return draws * NOISE[schedule]


# Problems ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variant:
    """Another way to say the same configurations: what is searched, and how it is meant."""

    space: Mapping[str, Any]
    actual: Callable[[Parameters], dict[str, Any]]
    """The parameters of `SPACE`, clipped to the ranges that the table covers."""


USUAL_RATE: Mapping[str, float] = {
    "sgd": 0.1,  # He et al., 2016; a tenth to four tenths in the ten-epoch recipes
    "rmsprop": 1e-3,  # Keras; torch's 0.01 is beyond most recipes
    # All others are torch's defaults.
    "adam": 1e-3,
    "adamw": 1e-3,
    "adagrad": 1e-2,
    "adadelta": 1.0,
    "adamax": 2e-3,
    "nadam": 2e-3,
}


def _relative(parameters: Parameters) -> dict[str, Any]:
    rate = parameters["learning_rate"] * USUAL_RATE[parameters["optimizer"]]
    return {**parameters, "learning_rate": _clip("learning_rate", rate)}


def _decoupled(parameters: Parameters) -> dict[str, Any]:
    """`weight_decay` is what a step takes off a weight: the product with the rate."""
    decay = parameters["weight_decay"] / parameters["learning_rate"]
    return {**parameters, "weight_decay": _clip("weight_decay", decay)}


def _clip(name: str, value: float) -> float:
    bounds = SPACE[name]
    return float(min(max(value, bounds["low"]), bounds["high"]))


def _log(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high, "log": True}


VARIANTS: Mapping[str, Variant] = {
    "table": Variant(SPACE, dict),
    "table-relative": Variant({**SPACE, "learning_rate": _log(0.03, 30)}, _relative),
    "table-relative-wide": Variant({**SPACE, "learning_rate": _log(0.01, 100)}, _relative),
    "table-decoupled": Variant({**SPACE, "weight_decay": _log(1e-8, 1e-4)}, _decoupled),
    "table-relative-decoupled": Variant(
        {**SPACE, "learning_rate": _log(0.03, 30), "weight_decay": _log(1e-8, 1e-4)},
        lambda parameters: _decoupled(_relative(parameters)),
    ),
}


class Table:
    """The model with the noise of a seed, seen through 500 validation images."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.space = VARIANTS[name].space
        self._actual = VARIANTS[name].actual
        self._model, self.scale = _fitted()

    def curve(self, parameters: Parameters, seed: int) -> Array:
        actual = self._actual(parameters)
        curve = _accuracy(self._model.predict([actual])[0] + noise(actual["schedule"], seed))
        seen: Array = np.round(curve * VALIDATION_IMAGES) / VALIDATION_IMAGES
        return seen

    def truth(self, parameters: Parameters) -> float:
        return float(_accuracy(self._model.predict([self._actual(parameters)])).max())


@cache
def _fitted() -> tuple[CurveModel, Scale]:
    """Seconds; once a process. The scale is that of `SPACE`, whatever the variant."""
    model = CurveModel(read_table()[1])
    values = _accuracy(model.predict(random_points(SPACE, REFERENCES))).max(axis=1)
    return model, Scale(float(values.max()), float(np.median(values)))


def _accuracy(odds: Array) -> Array:
    accuracy: Array = 1 / (1 + np.exp(-odds))
    return accuracy


class Recorded:
    """The recorded curves themselves, to be replayed: the only parameter is the row."""

    name = "recorded"

    def __init__(self) -> None:
        self._curves = np.array([row["accuracies"] for row in read_table()[1]])
        self.space: Mapping[str, Any] = {"row": {"low": 0, "high": len(self._curves) - 1}}
        best = self._curves.max(axis=1)
        self.scale = Scale(float(best.max()), float(np.median(best)))

    def curve(self, parameters: Parameters, seed: int) -> Array:
        curve: Array = self._curves[parameters["row"]]
        return curve

    def truth(self, parameters: Parameters) -> float:
        return float(self._curves[parameters["row"]].max())


# How well the model fits ---------------------------------------------------------------------


def cross_validate(folds: int = 10, only: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Predict rows that the model has not seen.

    Args:
        only: so many of the folds, to be quick.
    """
    from scipy.stats import spearmanr

    rows = read_table()[1]
    order = np.random.default_rng(seed).permutation(len(rows))
    seen, predicted = [], []
    for held in np.array_split(order, folds)[:only]:
        out = set(held.tolist())
        model = CurveModel([row for index, row in enumerate(rows) if index not in out])
        predicted.append(_accuracy(model.predict([rows[index]["parameters"] for index in held])))
        seen.append(np.array([rows[index]["accuracies"] for index in held]))
    actual, guess = np.concatenate(seen), np.concatenate(predicted)
    best, guessed = actual.max(axis=1), guess.max(axis=1)
    better_half = best > np.median(best)
    return {
        "rows": len(actual),
        "r2_per_epoch": _r2(actual, guess).tolist(),
        "rmse_per_epoch": np.sqrt(((actual - guess) ** 2).mean(axis=0)).tolist(),
        "r2_best": float(_r2(best, guessed)),
        "rmse_best": float(np.sqrt(((best - guessed) ** 2).mean())),
        "rank_correlation_best": float(spearmanr(best, guessed)[0]),
        "rank_correlation_better_half": float(
            spearmanr(best[better_half], guessed[better_half])[0]
        ),
    }


def _r2(actual: Array, guess: Array) -> Array:
    r2: Array = 1 - ((actual - guess) ** 2).sum(axis=0) / ((actual - actual.mean(axis=0)) ** 2).sum(
        axis=0
    )
    return r2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    fit = cross_validate(arguments.folds)
    if arguments.json:
        print(json.dumps(fit, indent=2))
        return
    for name, value in fit.items():
        values = value if isinstance(value, list) else [value]
        print(f"{name:30}", *(f"{v:.3f}" if isinstance(v, float) else v for v in values))


if __name__ == "__main__":
    main()
