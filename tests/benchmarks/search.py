"""Which sampler and pruner find the best configuration with the fewest epochs?

    python -m tests.benchmarks.search --lcbench DIRECTORY --seeds 10

Simulates asynchronous workers over recorded or modelled learning curves: an epoch takes one unit
of time (jittered by a thousandth, so that workers do not move in step), and a worker asks for the
next trial when its trial has ended. The samplers and pruners are those that a study file names,
made by the same code. Finished simulations are kept in a file of traces: run it again to go on.

Regret is that of the best complete trial: 0 the best of 20,000 random configurations, 1 their
median, below 0 better than all of them; 1 at most, and 1 until a first trial is complete. AUC is
its mean over the whole run.
"""

import argparse
import heapq
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler
from optuna.trial import Trial, TrialState

from search.objective import suggest
from search.samplers import derived_seed, make_pruner, make_sampler
from search.space import make_space
from studies.config import StudyConfig
from tests.benchmarks.problems import (
    EPOCHS,
    LCBENCH_DEVELOPMENT,
    Problem,
    lcbench_tasks,
    load_lcbench,
)

STRATEGIES = (
    "random+none,random+median,random+asha,random+hyperband,tpe+none,tpe+median,tpe+asha,"
    "tpe+hyperband,stock-gp+none,stock-gp+median,stock-gp+asha,gp+none,gp+median,gp+asha"
)
SHOWN_AFTER = (0.25, 0.5, 1.0)
"""Fractions of the budget of epochs at which the table shows the regret."""


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation of the table."""

    strategy: str
    problem: str
    seed: int
    workers: int
    epochs: int


@dataclass(frozen=True, slots=True)
class Result:
    run: Run
    regret: tuple[float, ...]
    """After each epoch that any worker has trained."""
    trials: int
    complete: int
    seconds_per_ask: float


def simulate(problem: Problem, config: StudyConfig, sampler: BaseSampler, run: Run) -> Result:
    """Search a problem with `run.workers` workers until `run.epochs` epochs are trained."""
    study = optuna.create_study(
        direction="maximize", sampler=sampler, pruner=make_pruner(config.pruner, EPOCHS)
    )
    space = make_space(config.space)
    jitter = np.random.default_rng(run.seed)
    # When the next epoch of a trial ends, the trial, its curve, and how many epochs it has had.
    events: list[tuple[float, int, Trial, Sequence[float], int]] = []
    seconds: list[float] = []
    best = -math.inf
    regret: list[float] = []

    def start(now: float) -> None:
        before = time.perf_counter()
        trial = study.ask()
        parameters = suggest(trial, space)
        seconds.append(time.perf_counter() - before)
        curve = problem.curve(parameters, derived_seed(run.seed, trial.number)).tolist()
        heapq.heappush(events, (after_an_epoch(now), trial.number, trial, curve, 0))

    def after_an_epoch(now: float) -> float:
        return now + 1 + 0.001 * jitter.random()

    for _ in range(run.workers):
        start(0.0)
    while len(regret) < run.epochs:
        now, number, trial, curve, trained = heapq.heappop(events)
        epoch = trained + 1
        trial.report(curve[epoch - 1], epoch)
        if epoch == len(curve):
            study.tell(trial, max(curve))
            best = max(best, *curve)
            start(now)
        elif trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            start(now)
        else:
            heapq.heappush(events, (after_an_epoch(now), number, trial, curve, epoch))
        regret.append(min(1.0, problem.scale.regret(best)))
    trials = study.get_trials(deepcopy=False)
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    return Result(run, tuple(regret), len(trials), complete, statistics.median(seconds))


def make_config(strategy: str, space: Mapping[str, Any]) -> StudyConfig:
    """A study file's settings for `sampler+pruner`, all else as it ships."""
    sampler, _, pruner = strategy.removeprefix("stock-").partition("+")
    return StudyConfig.model_validate(
        {
            "name": "benchmark",
            "space": space,
            "sampler": {"name": sampler},
            "pruner": {"name": pruner},
            "budget": {"trials": 1},
        }
    )


def run_one(job: tuple[Run, Path]) -> Result:
    import torch

    run, lcbench = job
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = load_lcbench(lcbench, run.problem.removeprefix("lcbench-"))
    config = make_config(run.strategy, problem.space)
    # Not of the strategy: with one seed, all begin with the same random trials. Of the problem:
    # else one lucky start would be lucky on every problem.
    seed = derived_seed(run.seed, run.problem)
    if run.strategy.startswith("stock-gp"):
        sampler: BaseSampler = GPSampler(seed=seed, warn_independent_sampling=False)
    else:
        sampler = make_sampler(config.sampler, seed, EPOCHS)
    return simulate(problem, config, sampler, run)


def read_traces(path: Path) -> dict[Run, Result]:
    """The simulations that are done."""
    results = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        content = json.loads(line)
        run = Run(**content.pop("run"))
        results[run] = Result(run, tuple(content.pop("regret")), **content)
    return results


def write_trace(result: Result) -> str:
    rounded = {
        "regret": [round(value, 5) for value in result.regret],
        "seconds_per_ask": round(result.seconds_per_ask, 4),
    }
    return json.dumps({**asdict(result), **rounded})


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """A row of the table: means over problems and seeds, and the standard error of the AUC."""
    traces = np.array([result.regret for result in results])
    # The problems differ far more than the seeds: a problem's mean is one observation.
    names = [result.run.problem for result in results]
    means = [traces[[name == problem for name in names]].mean() for problem in sorted(set(names))]
    return {
        "strategy": results[0].run.strategy,
        "runs": len(results),
        "problems": len(means),
        "regret": {
            round(part * traces.shape[1]): float(
                traces[:, round(part * traces.shape[1]) - 1].mean()
            )
            for part in SHOWN_AFTER
        },
        "auc": float(traces.mean()),
        "standard_error": float(np.std(means, ddof=1) / len(means) ** 0.5) if means[1:] else None,
        "trials": float(np.mean([result.trials for result in results])),
        "complete": float(np.mean([result.complete for result in results])),
        "seconds_per_ask": float(np.median([result.seconds_per_ask for result in results])),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as Markdown."""
    epochs = list(rows[0]["regret"])
    yield (
        "| sampler + pruner | "
        + " | ".join(f"after {count}" for count in epochs)
        + (" | AUC | trials | complete | s an ask |")
    )
    yield "|---" * (len(epochs) + 5) + "|"
    for row in rows:
        error = f" ± {row['standard_error']:.3f}" if row["standard_error"] is not None else ""
        yield (
            f"| {row['strategy'].replace('+', ' + ')} | "
            + " | ".join(f"{row['regret'][count]:.3f}" for count in epochs)
            + f" | {row['auc']:.3f}{error} | {row['trials']:.0f} | {row['complete']:.0f} | "
            f"{row['seconds_per_ask']:.3f} |"
        )


def draw(results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """The mean regret over epochs of each strategy, as a page that needs no internet."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for strategy, runs in results.items():
        mean = np.mean([run.regret for run in runs], axis=0)
        figure.add_scatter(x=list(range(1, len(mean) + 1)), y=mean, name=strategy)
    figure.update_layout(
        xaxis_title="epochs trained by all workers",
        yaxis_title="mean normalised regret of the best complete trial",
        template="plotly_white",
    )
    figure.write_html(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lcbench", type=Path, required=True, help="the surrogate's directory")
    parser.add_argument("--tasks", choices=["development", "judging"], default="judging")
    parser.add_argument("--strategies", default=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=320)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--traces", type=Path, default=Path("var/search-traces.jsonl"))
    parser.add_argument("--picture", type=Path, help="an HTML file")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    tasks = [
        task
        for task in lcbench_tasks(arguments.lcbench)
        if (task in LCBENCH_DEVELOPMENT) == (arguments.tasks == "development")
    ]
    strategies = arguments.strategies.split(",")
    # Seeds outermost: whatever the time allows is a fair comparison.
    wanted = [
        Run(strategy, f"lcbench-{task}", seed, arguments.workers, arguments.epochs)
        for seed, task, strategy in itertools.product(range(arguments.seeds), tasks, strategies)
    ]
    arguments.traces.parent.mkdir(parents=True, exist_ok=True)
    done = read_traces(arguments.traces)
    deadline = time.monotonic() + 60 * arguments.minutes
    jobs = [(run, arguments.lcbench) for run in wanted if run not in done]
    with (
        multiprocessing.get_context("spawn").Pool(arguments.processes) as pool,
        arguments.traces.open("a") as file,
    ):
        for result in pool.imap(run_one, jobs):
            done[result.run] = result
            file.write(write_trace(result) + "\n")
            file.flush()
            if time.monotonic() > deadline:
                break
    # Only problems and seeds that every strategy has had.
    rounds = list(zip(*[iter(wanted)] * len(strategies), strict=True))
    complete = [runs for runs in rounds if all(run in done for run in runs)]
    if not complete:
        parser.exit(1, "no problem was finished by every strategy yet; run it again to go on\n")
    results = {
        runs[0].strategy: [done[run] for run in runs] for runs in zip(*complete, strict=True)
    }
    rows = [summarise(runs) for runs in results.values()]
    print(json.dumps(rows, indent=2) if arguments.json else "\n".join(table(rows)))
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()
