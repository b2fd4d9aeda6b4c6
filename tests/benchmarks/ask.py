"""How long does a worker wait for a suggestion?

    python -m tests.benchmarks.ask

Asks for trials in the space of `studies/cifar10.toml`, with 8 trials running, in studies of 100
and of 500 finished trials (every third complete, the others pruned), in memory, on one thread:
the time of `ask` and of every `suggest`. The samplers take turns, so that whatever else the
machine does is shared; each keeps what it keeps between trials, as in a worker.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.study import Study
from optuna.trial import TrialState

EPOCHS = 10
FINISHED = (100, 500)
RUNNING = 8
SAMPLERS: Mapping[str, Callable[[], BaseSampler]] = {
    "stock-gp": lambda: GPSampler(seed=0, warn_independent_sampling=False),
    "tpe": lambda: TPESampler(seed=0),
}


def make_study(space: Mapping[str, BaseDistribution], finished: int) -> Study:
    """A study with that many finished trials and `RUNNING` running ones."""
    from search.space import at

    random = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize")
    for number in range(finished + RUNNING):
        point = random.random(len(space))
        best = 0.3 + 0.5 * float(np.exp(-4 * np.sum((point[:4] - 0.6) ** 2)))
        curve = best * (1 - 0.7 ** np.arange(1, EPOCHS + 1))
        running = number >= finished
        complete = number % 3 == 0 and not running
        trained = EPOCHS if complete else int(random.integers(1, 5))
        state = TrialState.COMPLETE if complete else TrialState.PRUNED
        study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING if running else state,
                value=float(curve[-1]) if complete else None,
                params={
                    name: at(item, float(u))
                    for (name, item), u in zip(space.items(), point, strict=True)
                },
                distributions=dict(space),
                intermediate_values=dict(enumerate(curve[:trained].tolist(), start=1)),
            )
        )
    return study


def seconds_to_ask(
    study: Study, sampler: BaseSampler, space: Mapping[str, BaseDistribution]
) -> float:
    """Of one trial, which is then as if it had never been."""
    from search.objective import suggest

    study.sampler = sampler
    started = time.perf_counter()
    trial = study.ask()
    suggest(trial, space)
    seconds = time.perf_counter() - started
    study.tell(trial, state=TrialState.FAIL)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    import torch

    from search.sampler import CurveGPSampler
    from search.space import make_space
    from studies.config import load_study_file

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = make_space(load_study_file("cifar10").space)
    makers = {"gp": lambda: CurveGPSampler(0, 4, EPOCHS), **SAMPLERS}
    rows: list[dict[str, Any]] = []
    for finished in FINISHED:
        study = make_study(space, finished)
        samplers = {name: make() for name, make in makers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        # The first round is a warm-up: imports, and the first fit of the kernel.
        for round_number in range(arguments.rounds + 1):
            for name, sampler in samplers.items():
                took = seconds_to_ask(study, sampler, space)
                if round_number:
                    seconds[name].append(took)
        rows += [
            {"finished": finished, "sampler": name, "median": statistics.median(took)}
            for name, took in seconds.items()
        ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"median seconds of {arguments.rounds} asks, {RUNNING} running, one thread")
    print("| finished | sampler | seconds |\n|---|---|---|")
    for row in rows:
        print(f"| {row['finished']} | {row['sampler']} | {row['median']:.3f} |")


if __name__ == "__main__":
    main()
