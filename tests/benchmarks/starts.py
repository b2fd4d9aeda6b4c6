"""Known good starts for LCBench: few configurations of which one is good on most tasks.

    python -m tests.benchmarks.starts --lcbench DIRECTORY

chooses them on the development tasks: of 2,048 Sobol points, one after the other that which lowers
the mean over the tasks of the best regret so far the most (Pfisterer et al., "Learning Multiple
Defaults for Machine Learning Algorithms", 2021). They stand for what a study file's `[[start]]`
tables say of our own trial: experience with other data sets.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CANDIDATES = 2048
WORST = 1.5
"""Regrets count up to this."""
COUNT = 4

LCBENCH_STARTS: Sequence[Mapping[str, Any]] = (
    {
        "batch_size": 22,
        "learning_rate": 0.0651,
        "momentum": 0.314,
        "weight_decay": 0.0295,
        "num_layers": 5,
        "max_units": 105,
        "max_dropout": 0.239,
    },
    {
        "batch_size": 20,
        "learning_rate": 0.0288,
        "momentum": 0.352,
        "weight_decay": 0.00239,
        "num_layers": 3,
        "max_units": 926,
        "max_dropout": 0.474,
    },
    {
        "batch_size": 16,
        "learning_rate": 0.0884,
        "momentum": 0.84,
        "weight_decay": 0.00534,
        "num_layers": 5,
        "max_units": 175,
        "max_dropout": 0.88,
    },
    {
        "batch_size": 17,
        "learning_rate": 0.00248,
        "momentum": 0.297,
        "weight_decay": 0.0184,
        "num_layers": 5,
        "max_units": 205,
        "max_dropout": 0.415,
    },
)
"""What this module prints."""


def choose(directory: Path) -> list[dict[str, Any]]:
    """The starts, best first."""
    from scipy.stats import qmc

    from search.space import at
    from tests.benchmarks.problems import (
        LCBENCH_DEVELOPMENT,
        LCBENCH_SPACE,
        distributions,
        load_lcbench,
    )

    items = distributions(LCBENCH_SPACE)
    sequence = qmc.Sobol(len(items), scramble=True, rng=np.random.default_rng(1))
    points = [
        {name: at(item, float(u)) for (name, item), u in zip(items.items(), point, strict=True)}
        for point in sequence.random(CANDIDATES)
    ]
    regrets = np.array(
        [
            [task.scale.regret(task.truth(point)) for point in points]
            for task in (load_lcbench(directory, name) for name in sorted(LCBENCH_DEVELOPMENT))
        ]
    ).clip(max=WORST)
    best = np.full(len(regrets), WORST)
    chosen = []
    for _ in range(COUNT):
        index = int(np.minimum(best[:, None], regrets).mean(axis=0).argmin())
        best = np.minimum(best, regrets[:, index])
        chosen.append(points[index])
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lcbench", type=Path, required=True, help="the surrogate's directory")
    for start in choose(parser.parse_args().lcbench):
        print({name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in start.items()})


if __name__ == "__main__":
    main()
