"""Record real learning curves of the shipped search space, to search on without training.

    python -m tests.benchmarks.curves --configurations 300 --processes 2

Every second configuration is the next point of a scrambled Sobol sequence over `SPACE`, the
others are uniform at random. Each is trained for ten epochs on CIFAR-10 mini at reduced width,
without pruning. The table is `curves.jsonl`: a line that says how it was made, then one line a
configuration. Run it again to add what is missing.

    python -m tests.benchmarks.curves --again 37,42,46,77 --seeds 2

trains rows of the table again with other seeds, into `seeds.jsonl`: what a seed alone changes.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution

TABLE = Path(__file__).parent / "curves.jsonl"
SEEDS = Path(__file__).parent / "seeds.jsonl"
SEED = 0
WIDTH = 8
EPOCHS = 10


SPACE: Mapping[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
    "optimizer": ["sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "adamax", "nadam"],
    "schedule": ["constant", "one-cycle"],
    "batch_size": [64, 128, 256, 512],
    "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
    "augmentation": ["none", "flip", "flip+crop", "flip+crop+cutout", "flip+resized-crop"],
    "color_jitter": [False, True],
    "dropout": {"low": 0.0, "high": 0.5},
    "depth": 18,
    "width": WIDTH,
}
"""That of `studies/cifar10.toml` when the table was made, at the table's width."""


def table_space() -> dict[str, BaseDistribution]:
    """The distributions of `SPACE`."""
    from tests.benchmarks.problems import distributions

    return distributions(SPACE)


def configuration(index: int, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The parameters of a row, which depend on its index and `SEED` alone."""
    from scipy.stats import qmc

    from search.space import at

    if index % 2 == 0:
        sequence = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng(SEED))
        point = sequence.random(index // 2 + 1)[-1]
    else:
        point = np.random.default_rng((SEED, index)).random(len(space))
    return {name: at(item, float(u)) for (name, item), u in zip(space.items(), point, strict=True)}


def train_row(job: tuple[int, int, Path]) -> dict[str, Any]:
    """Train the configuration of an index with a seed, with data cached in the folder given."""
    import torch

    from data.dataset import load_dataset
    from data.split import split_for_training
    from model.train import train
    from model.trial import Diverged, TrialContext
    from search.samplers import derived_seed

    index, seed, cache = job
    torch.set_num_threads(1)
    parameters = configuration(index, table_space())
    data = split_for_training(load_dataset("cifar10-mini", cache), 0.1, SEED)
    context = TrialContext(data, torch.device("cpu"), EPOCHS, derived_seed(seed, index), "auto")
    started = time.perf_counter()
    accuracies: list[float] = []
    diverged = False
    try:
        for result in train(parameters, context):
            accuracies.append(round(result.validation_accuracy, 5))
    except Diverged:
        diverged = True
    return {
        "index": index,
        "seed": seed,
        "parameters": parameters,
        "accuracies": accuracies,
        "diverged": diverged,
        "seconds": round(time.perf_counter() - started, 1),
    }


def read_table(path: Path = TABLE) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How the table was made, and its rows by index."""
    first, *rows = (json.loads(line) for line in path.read_text().splitlines())
    return first, sorted(rows, key=_key)


def _key(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["index"], row.get("seed", SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--configurations", type=int, default=300)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--again", help="indices of rows to train with other seeds")
    parser.add_argument("--seeds", type=int, default=2, help="how many others (with --again)")
    parser.add_argument("--cache", type=Path, default=Path("var"))
    arguments = parser.parse_args()
    path = SEEDS if arguments.again else TABLE
    if not path.exists():
        import optuna
        import torch

        made = {
            "seed": SEED,
            "data": "cifar10-mini, validation_fraction 0.1",
            "width": WIDTH,
            "epochs": EPOCHS,
            "torch": torch.__version__.split("+")[0],
            "optuna": optuna.__version__,
            "bfloat16": torch.cpu._is_avx512_bf16_supported(),
        }
        path.write_text(json.dumps(made) + "\n")
    wanted = (
        [
            (int(index), SEED + 1 + seed)
            for seed in range(arguments.seeds)
            for index in arguments.again.split(",")
        ]
        if arguments.again
        else [(index, SEED) for index in range(arguments.configurations)]
    )
    done = {_key(row) for row in read_table(path)[1]}
    deadline = time.monotonic() + 60 * arguments.minutes
    with (
        multiprocessing.get_context("spawn").Pool(arguments.processes) as pool,
        path.open("a") as file,
    ):
        jobs = [(*key, arguments.cache) for key in wanted if key not in done]
        for row in pool.imap_unordered(train_row, jobs):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row["index"], row["seconds"], max(row["accuracies"], default=0.0), flush=True)
            if time.monotonic() > deadline:
                return


if __name__ == "__main__":
    main()
