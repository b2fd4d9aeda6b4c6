"""Which sampler and pruner find the best configuration with the fewest epochs?

    python -m tests.benchmarks.search --problems table synthetic recorded --seeds 10
    python -m tests.benchmarks.search --lcbench DIRECTORY --strategies gp+median gp+asha

Simulates asynchronous workers over recorded or modelled learning curves: an epoch takes one unit
of time (jittered by a thousandth, so that workers do not move in step), and a worker asks for the
next trial when its trial has ended. The samplers and pruners are those that a study file names,
made by the same code; `strategies.py` says how they are written. Finished simulations are kept in
a file of traces: run it again to go on. It knows of changed settings, not of changed code, which
wants a new file.

Regret is that of the complete trial with the best value, without the noise of its seed: 0 the best
of 20,000 random configurations (synthetic: the optimum), 1 their median, below 0 better than all
of them; 1 at most, and 1 until a first trial is complete. AUC is its mean over the whole run.
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
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from data.errors import UserError
from studies.config import StudyConfig
from tests.benchmarks import strategies
from tests.benchmarks.problems import (
    EPOCHS,
    LCBENCH_DEVELOPMENT,
    Problem,
    distributions,
    family,
    lcbench_tasks,
    load_lcbench,
)

TOP = 3
"""A pruner should not kill one of a run's so many best trials."""


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation of the table."""

    strategy: str
    problem: str
    seed: int
    workers: int
    epochs: int
    settings: str = ""
    """All that a study file would say of the strategy, in short: defaults change."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a run's pruner did, by the full curves of its pruned trials."""

    saved: float = 0.0
    """Share of the epochs of all ended trials."""
    killed_best: bool = False
    """Whether a pruned trial would have had a better value than the best complete one."""
    killed_top: int = 0
    """How many of the `TOP` best trials by full curve were pruned."""
    lost: float = 0.0
    """Regret of the best complete trial less that of the best if nothing had been pruned."""


@dataclass(frozen=True, slots=True)
class Result:
    run: Run
    regret: tuple[float, ...]
    """After each epoch that any worker has trained."""
    trials: int
    complete: int
    seconds_per_ask: float
    pruning: Pruning = Pruning()


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial that is over."""

    value: float
    """The best of the full curve, whether it was trained or not."""
    regret: float
    """Without the noise."""
    trained: int
    """epochs"""
    pruned: bool


def simulate(
    problem: Problem,
    config: StudyConfig,
    sampler: BaseSampler,
    run: Run,
    enqueued: Sequence[Mapping[str, Any]] | None = None,
    starts: Sequence[Mapping[str, Any]] = (),
) -> Result:
    """Search a problem with `run.workers` workers until `run.epochs` epochs are trained.

    Args:
        enqueued: all configurations that there are to try; None if the sampler makes them up.
        starts: configurations to try before the sampler makes any up.
    """
    # Here, not above: who only reads traces or problems needs no torch.
    from search.objective import suggest
    from search.samplers import derived_seed, make_pruner

    study = optuna.create_study(
        direction="maximize", sampler=sampler, pruner=make_pruner(config.pruner, EPOCHS)
    )
    space = distributions(problem.space)
    for parameters in (*starts, *(enqueued or ())):
        study.enqueue_trial(dict(parameters))
    jitter = np.random.default_rng(run.seed)
    # When the next epoch of a trial ends, the trial, its curve, and how many epochs it has had.
    events: list[tuple[float, int, Trial, Sequence[float], int]] = []
    seconds: list[float] = []
    ended: list[Ended] = []
    best: Ended | None = None
    regret: list[float] = []
    asked = 0

    def start(now: float) -> None:
        nonlocal asked
        if enqueued is not None and asked == len(enqueued):
            return
        asked += 1
        before = time.perf_counter()
        trial = study.ask()
        parameters = suggest(trial, space)
        seconds.append(time.perf_counter() - before)
        curve = problem.curve(parameters, derived_seed(run.seed, trial.number)).tolist()
        heapq.heappush(events, (after_an_epoch(now), trial.number, trial, curve, 0))

    def after_an_epoch(now: float) -> float:
        return now + 1 + 0.001 * jitter.random()

    def end(trial: Trial, curve: Sequence[float], trained: int, pruned: bool) -> Ended:
        true_regret = problem.scale.regret(problem.truth(trial.params))
        ended.append(Ended(max(curve), true_regret, trained, pruned))
        return ended[-1]

    for _ in range(run.workers):
        start(0.0)
    while events and len(regret) < run.epochs:
        now, number, trial, curve, trained = heapq.heappop(events)
        epoch = trained + 1
        trial.report(curve[epoch - 1], epoch)
        if epoch == len(curve):
            study.tell(trial, max(curve))
            this = end(trial, curve, epoch, pruned=False)
            best = this if best is None or this.value > best.value else best
            start(now)
        elif trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            end(trial, curve, epoch, pruned=True)
            start(now)
        else:
            heapq.heappush(events, (after_an_epoch(now), number, trial, curve, epoch))
        regret.append(1.0 if best is None else min(1.0, best.regret))
    complete = sum(not trial.pruned for trial in ended)
    return Result(
        run, tuple(regret), asked, complete, statistics.median(seconds), judge_pruning(ended)
    )


def judge_pruning(ended: Sequence[Ended]) -> Pruning:
    """What pruning spared and what it cost."""
    if not ended:
        return Pruning()
    # Of equals, first those that were finished: nothing was lost.
    ranked = sorted(ended, key=lambda trial: (-trial.value, trial.pruned))
    best = ranked[0]
    finished = next((trial for trial in ranked if not trial.pruned), None)
    return Pruning(
        saved=1 - sum(trial.trained for trial in ended) / (EPOCHS * len(ended)),
        killed_best=best.pruned,
        killed_top=sum(trial.pruned for trial in ranked[:TOP]),
        lost=(min(1.0, finished.regret) if finished else 1.0) - min(1.0, best.regret),
    )


def load_problem(name: str, lcbench: Path | None) -> Problem:
    """A problem by its name; the model behind it is made once a process."""
    kind = name.partition("-")[0]
    if kind == "lcbench":
        if lcbench is None:
            raise UserError("lcbench: give the surrogate's directory with --lcbench")
        return load_lcbench(lcbench, name.removeprefix("lcbench-"))
    if kind == "synthetic":
        from tests.benchmarks.synthetic import SYNTHETIC

        return SYNTHETIC[name]
    from tests.benchmarks.table import Recorded, Table

    return Recorded() if kind == "recorded" else Table(name)


def problem_names(wanted: Sequence[str], lcbench: Path | None, tasks: str) -> list[str]:
    """All problems of families, or single ones, in order.

    Raises:
        UserError: one is not known, or LCBench's directory is not given.
    """
    from tests.benchmarks.synthetic import SYNTHETIC
    from tests.benchmarks.table import VARIANTS

    names: list[str] = []
    for item in wanted:
        if item == "lcbench":
            if lcbench is None:
                raise UserError("lcbench: give the surrogate's directory with --lcbench")
            names += [
                f"lcbench-{task}"
                for task in lcbench_tasks(lcbench)
                if (task in LCBENCH_DEVELOPMENT) == (tasks == "development")
            ]
        elif item == "synthetic":
            names += SYNTHETIC
        elif item in ("recorded", *VARIANTS, *SYNTHETIC) or item.startswith("lcbench-"):
            names.append(item)
        else:
            known = ", ".join(("lcbench", "synthetic", "recorded", *VARIANTS, *SYNTHETIC))
            raise UserError(f"--problems {item}: unknown; known are {known}")
    return names


def run_one(job: tuple[Run, Path | None]) -> Result:
    import torch

    from search.samplers import derived_seed

    run, lcbench = job
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = load_problem(run.problem, lcbench)
    config = strategies.make_config(run.strategy, problem.space)
    # Not of the strategy: with one seed, all begin with the same random trials. Of the problem:
    # else one lucky start would be lucky on every problem.
    seed = derived_seed(run.seed, run.problem)
    sampler = strategies.make_benchmark_sampler(run.strategy, problem, config, seed)
    points = strategies.enqueued(run.strategy, problem, config, seed)
    return simulate(problem, config, sampler, run, points, strategies.starts(run.strategy))


def read_traces(path: Path) -> dict[Run, Result]:
    """The simulations that are done. One that was being written when it was killed is not."""
    results = {}
    for line in whole_lines(path):
        content = json.loads(line)
        run = Run(**content.pop("run"))
        pruning = Pruning(**content.pop("pruning", {}))
        results[run] = Result(run, tuple(content.pop("regret")), **content, pruning=pruning)
    return results


def whole_lines(path: Path) -> list[str]:
    """The lines of a file, which need not exist; a last one that lacks its end is cut off."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return whole.splitlines()


def write_trace(result: Result) -> str:
    rounded = {
        "regret": [round(value, 5) for value in result.regret],
        "seconds_per_ask": round(result.seconds_per_ask, 4),
    }
    return json.dumps({**asdict(result), **rounded})


def run_missing(
    wanted: Sequence[Run], traces: Path, lcbench: Path | None, processes: int, minutes: float
) -> dict[Run, Result]:
    """Simulate what the file of traces lacks, until the time is over; all that is done."""
    traces.parent.mkdir(parents=True, exist_ok=True)
    done = read_traces(traces)
    jobs = [(run, lcbench) for run in wanted if run not in done]
    if not jobs:
        return done
    deadline = time.monotonic() + 60 * minutes
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        traces.open("a") as file,
    ):
        for result in pool.imap_unordered(run_one, jobs):
            done[result.run] = result
            file.write(write_trace(result) + "\n")
            file.flush()
            if time.monotonic() > deadline:
                break
    return done


def fair_rounds(wanted: Sequence[Run], done: Mapping[Run, Result]) -> Iterator[Result]:
    """The results of those problems and seeds that every strategy has had."""
    for _, group in itertools.groupby(wanted, key=lambda run: (run.seed, run.problem)):
        runs = list(group)
        if all(run in done for run in runs):
            yield from (done[run] for run in runs)


def main() -> None:
    from tests.benchmarks.summary import draw, pruning_table, summarise, table

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--problems", nargs="+", default=["lcbench", "table", "synthetic"])
    parser.add_argument("--lcbench", type=Path, help="the surrogate's directory")
    parser.add_argument("--tasks", choices=["development", "judging"], default="judging")
    parser.add_argument(
        "--strategies", nargs="+", default=strategies.DEFAULT, help="`all`: every combination"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=320)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--traces", type=Path, default=Path("var/search-traces.jsonl"))
    parser.add_argument("--pruners", action="store_true", help="also what pruning saved and cost")
    parser.add_argument("--picture", type=Path, help="an .html file, or .svg (needs Chromium)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    compared = arguments.strategies
    if compared == ["all"]:
        compared = list(dict.fromkeys(strategies.ALL))
    try:
        strategies.check(compared)
        names = problem_names(arguments.problems, arguments.lcbench, arguments.tasks)
    except UserError as error:
        parser.error(str(error))
    # Seeds outermost: whatever the time allows is a fair comparison.
    wanted = [
        # A table is replayed until its rows are at an end.
        Run(
            strategy,
            problem,
            seed,
            arguments.workers,
            10**6 if problem == "recorded" else arguments.epochs,
            strategies.settings(strategy),
        )
        for seed in range(arguments.seeds)
        for problem, strategy in strategies.pairs(compared, names)
    ]
    done = run_missing(
        wanted, arguments.traces, arguments.lcbench, arguments.processes, arguments.minutes
    )
    families: dict[str, list[Result]] = {}
    for result in fair_rounds(wanted, done):
        families.setdefault(family(result.run.problem), []).append(result)
    if not families:
        parser.exit(1, "no problem was finished by every strategy yet; run it again to go on\n")
    rows = {name: summarise(results) for name, results in families.items()}
    if arguments.json:
        print(json.dumps(rows, indent=2))
    for name, summary in [] if arguments.json else rows.items():
        count = summary[0]["problems"]
        print(
            f"\n{name}: {count} problem{'s' if count > 1 else ''}, {summary[0]['runs']} runs a row"
        )
        if name != "recorded":
            print("", *table(summary), sep="\n")
        if name == "recorded" or arguments.pruners:
            print("", *pruning_table(summary), sep="\n")
    if arguments.picture:
        draw(
            {name: runs for name, runs in families.items() if name != "recorded"}, arguments.picture
        )


if __name__ == "__main__":
    main()
