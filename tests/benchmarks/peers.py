"""The search benchmark for optimizers outside Optuna, in an environment of their own.

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install -e . -r tests/benchmarks/peers-requirements.txt
    OMP_NUM_THREADS=1 .venv-peers/bin/python -m tests.benchmarks.peers --lcbench DIRECTORY --seeds 3

The problems, the seeds and the simulated workers are those of `tests.benchmarks.search`, and the
traces go to the same file, from which that module prints them beside its own. A trial that is
trained on is charged for its further epochs alone, as if from a checkpoint: a favour to SMAC, which
trains anew at each budget. A peer is told the best value of a trial so far, since that is judged.
SMAC does not repeat exactly with one seed.
"""

import argparse
import heapq
import itertools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from search.samplers import derived_seed
from search.space import Space, make_space
from studies.config import Range
from tests.benchmarks.problems import (
    EPOCHS,
    LCBENCH_DEVELOPMENT,
    Problem,
    lcbench_tasks,
    load_lcbench,
)
from tests.benchmarks.search import Result, Run, read_traces, write_trace
from tests.benchmarks.summary import summarise, table


@dataclass(frozen=True, slots=True)
class Task:
    """A configuration to train until it has had so many epochs in all."""

    trial: int
    """A trial that comes again goes on from where it stopped."""
    parameters: Mapping[str, Any]
    epochs: int


class Peer(Protocol):
    """An optimizer that is asked for trials and told how they go."""

    def ask(self) -> Task: ...

    def tell(self, task: Task, epoch: int, value: float) -> bool:
        """Take the best value of a trial's epochs so far, and say whether to train it on."""


def simulate(problem: Problem, peer: Peer, run: Run) -> Result:
    """Search a problem with `run.workers` workers until `run.epochs` epochs are trained."""
    jitter = np.random.default_rng(run.seed)
    # When the next epoch of a trial ends, the trial, what to do with it, and its curve.
    events: list[tuple[float, int, Task, Sequence[float]]] = []
    trained: dict[int, int] = {}
    seconds: list[float] = []
    best = -math.inf
    best_regret = 1.0
    regret: list[float] = []

    def start(now: float) -> None:
        before = time.perf_counter()
        task = peer.ask()
        seconds.append(time.perf_counter() - before)
        if task.epochs <= trained.setdefault(task.trial, 0):
            raise RuntimeError(f"{run.strategy} asked for epochs that it has had: {task}")
        curve = problem.curve(task.parameters, derived_seed(run.seed, task.trial)).tolist()
        heapq.heappush(events, (after_an_epoch(now), task.trial, task, curve))

    def after_an_epoch(now: float) -> float:
        return now + 1 + 0.001 * jitter.random()

    for _ in range(run.workers):
        start(0.0)
    while len(regret) < run.epochs:
        now, trial, task, curve = heapq.heappop(events)
        trained[trial] = epoch = trained[trial] + 1
        value = max(curve[:epoch])
        if epoch == len(curve) and value > best:
            best = value
            best_regret = min(1.0, problem.scale.regret(problem.truth(task.parameters)))
        goes_on = peer.tell(task, epoch, value)
        if goes_on and epoch < task.epochs:
            heapq.heappush(events, (after_an_epoch(now), trial, task, curve))
        else:
            start(now)
        regret.append(best_regret)
    complete = sum(epochs == EPOCHS for epochs in trained.values())
    return Result(run, tuple(regret), len(trained), complete, statistics.median(seconds))


# The peers ------------------------------------------------------------------------------------


class Smac:
    """SMAC3's multi-fidelity facade: a random forest and Hyperband, all else as the facade sets it.

    Budgets, eta and five random configurations to begin with are those of SMAC's example of
    searching a network's parameters with epochs as the budget; how many trials the epochs are
    worth is what SMAC computes from them. Hyperband's 1.1, 3.3 and 10 epochs are trained as 1, 3
    and 10. It is asked for as many trials as there are workers.

    https://automl.github.io/SMAC3/latest/examples/2%20Multi-Fidelity%20and%20Multi-Instances/1_mlp_epochs
    https://automl.github.io/SMAC3/latest/api/smac/facade/multi_fidelity_facade/
    https://automl.github.io/SMAC3/latest/advanced_usage/5_ask_and_tell/
    """

    def __init__(self, space: Space, seed: int, run: Run) -> None:
        from ConfigSpace import ConfigurationSpace, Integer
        from ConfigSpace import Float as Real
        from smac import MultiFidelityFacade, Scenario
        from smac.intensifier.hyperband_utils import get_n_trials_for_hyperband_multifidelity

        configurations = ConfigurationSpace(seed=seed)
        for name, item in space.items():
            low, high, log, whole = _range(item)
            configurations.add((Integer if whole else Real)(name, (low, high), log=log))
        budgets = {"min_budget": 1, "max_budget": EPOCHS}
        trials = get_n_trials_for_hyperband_multifidelity(
            total_budget=run.epochs, **budgets, eta=3, print_summary=False
        )
        self._directory = tempfile.TemporaryDirectory()
        scenario = Scenario(
            configurations,
            deterministic=True,
            **budgets,
            n_trials=trials,
            seed=seed,
            output_directory=Path(self._directory.name),
        )
        self._smac = MultiFidelityFacade(
            scenario,
            intensifier=MultiFidelityFacade.get_intensifier(scenario, eta=3),
            initial_design=MultiFidelityFacade.get_initial_design(scenario, n_configs=5),
            logging_level=False,
        )
        self._trials: dict[Any, int] = {}
        self._running: dict[int, Any] = {}

    def ask(self) -> Task:
        asked = self._smac.ask()
        trial = self._trials.setdefault(asked.config, len(self._trials))
        self._running[trial] = asked
        return Task(trial, dict(asked.config), round(asked.budget))

    def tell(self, task: Task, epoch: int, value: float) -> bool:
        from smac.runhistory.dataclasses import TrialValue

        if epoch == task.epochs:
            asked = self._running.pop(task.trial)
            self._smac.tell(asked, TrialValue(cost=1 - value), save=False)
        return True


class SyneTune:
    """An asynchronous Hyperband scheduler of Syne Tune, of its type "stopping", the default.

    One bracket, rungs after 1, 3 and 9 epochs; MOBSTER's Gaussian process over configurations and
    epochs ("gp_multitask") and BOHB's kernel densities are those that it takes by default. The
    first trial is the middle of the space, its default too.

    https://syne-tune.readthedocs.io/en/latest/tutorials/multifidelity/mf_async_model.html
    https://syne-tune.readthedocs.io/en/latest/_apidoc/syne_tune.optimizer.baselines.html
    """

    def __init__(self, method: str, space: Space, seed: int) -> None:
        from syne_tune import config_space as domains
        from syne_tune.optimizer import baselines

        ranges: dict[str, Any] = {}
        for name, item in space.items():
            low, high, log, whole = _range(item)
            kinds = {
                (False, False): domains.uniform,
                (True, False): domains.loguniform,
                (False, True): domains.randint,
                (True, True): domains.lograndint,
            }
            ranges[name] = kinds[log, whole](low, high)
        self._scheduler = getattr(baselines, method)(
            ranges,
            metric="value",
            mode="max",
            resource_attr="epoch",
            max_t=EPOCHS,
            grace_period=1,
            reduction_factor=3,
            random_seed=seed,
            search_options={"debug_log": False},
        )
        self._trials: list[Any] = []

    def ask(self) -> Task:
        from syne_tune.backend.trial_status import Trial

        number = len(self._trials)
        suggestion = self._scheduler.suggest(number)
        trial = Trial(number, suggestion.config, datetime.now())
        self._scheduler.on_trial_add(trial)
        self._trials.append(trial)
        return Task(number, suggestion.config, EPOCHS)

    def tell(self, task: Task, epoch: int, value: float) -> bool:
        from syne_tune.optimizer.scheduler import SchedulerDecision

        trial = self._trials[task.trial]
        decision = self._scheduler.on_trial_result(trial, {"value": value, "epoch": epoch})
        if decision == SchedulerDecision.CONTINUE:
            return True
        self._scheduler.on_trial_remove(trial)
        return False


def _range(item: BaseDistribution) -> tuple[Any, Any, bool, bool]:
    """Lowest and highest value, whether on a logarithmic scale, and whether whole numbers."""
    assert isinstance(item, FloatDistribution | IntDistribution)
    return item.low, item.high, item.log, isinstance(item, IntDistribution)


PEERS: Mapping[str, Callable[[Space, int, Run], Peer]] = {
    "smac3-multifidelity": Smac,
    "syne-tune-mobster": lambda space, seed, run: SyneTune("MOBSTER", space, seed),
    "syne-tune-bohb": lambda space, seed, run: SyneTune("BOHB", space, seed),
}


def run_one(problem: Problem, run: Run) -> Result:
    space = make_space({name: Range(**item) for name, item in problem.space.items()})
    seed = derived_seed(run.seed, run.problem) % 2**31  # the peers' seeds are signed
    np.random.seed(seed)
    return simulate(problem, PEERS[run.strategy](space, seed, run), run)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lcbench", type=Path, required=True, help="the surrogate's directory")
    parser.add_argument("--tasks", choices=["development", "judging"], default="judging")
    parser.add_argument("--strategies", default=",".join(PEERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=320)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--traces", type=Path, default=Path("var/search-traces.jsonl"))
    arguments = parser.parse_args()

    logging.disable(logging.WARNING)
    strategies = arguments.strategies.split(",")
    tasks = [
        task
        for task in lcbench_tasks(arguments.lcbench)
        if (task in LCBENCH_DEVELOPMENT) == (arguments.tasks == "development")
    ]
    # Seeds outermost: whatever the time allows is a fair comparison.
    wanted = [
        Run(strategy, f"lcbench-{task}", seed, arguments.workers, arguments.epochs)
        for seed, task, strategy in itertools.product(range(arguments.seeds), tasks, strategies)
    ]
    arguments.traces.parent.mkdir(parents=True, exist_ok=True)
    done = read_traces(arguments.traces)
    deadline = time.monotonic() + 60 * arguments.minutes
    todo = (run for run in wanted if run not in done)
    with arguments.traces.open("a") as file:
        for (_, name), runs in itertools.groupby(todo, lambda run: (run.seed, run.problem)):
            if time.monotonic() > deadline:
                break
            problem = load_lcbench(arguments.lcbench, name.removeprefix("lcbench-"))
            for run in runs:
                done[run] = run_one(problem, run)
                file.write(write_trace(done[run]) + "\n")
                file.flush()
    results = [
        [done[run] for run in wanted if run in done and run.strategy == s] for s in strategies
    ]
    print("\n".join(table(summarise([result for runs in results for result in runs]))))


if __name__ == "__main__":
    main()
