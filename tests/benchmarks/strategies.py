"""The strategies that the search benchmark compares, by name.

`SAMPLER+PRUNER` with the names of a study file, and after a colon settings in place of the
defaults, as `hpsearch run --set` takes them, with commas between:

    gp+median:pruner.warmup_epochs=1,sampler.startup_trials=8

Samplers beyond those of a study file: `stock-gp` (Optuna's own), `manual` (trial and error by
hand) and `replay` (every row of a recorded table once, in random order). `known-` before a sampler
lets it begin with what did well on other tasks (LCBench), as a study file's `[[start]]` does.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from data.errors import UserError
from search.space import MOST_GRID_TRIALS, Space, at, grid, nearest
from studies.config import PrunerSettings, StudyConfig, parse_assignment, parse_study
from tests.benchmarks.problems import EPOCHS, Problem, distributions, family
from tests.benchmarks.starts import LCBENCH_STARTS

PRUNERS: Sequence[str] = get_args(PrunerSettings.model_fields["name"].annotation)
DEFAULT = (
    *("manual+none", "random+none", "random+median", "tpe+median", "stock-gp+none"),
    *("grid+none", "gp+predictive", "gp+median", "gp+asha"),
    "gp+median:sampler.startup_trials=8",
    *("known-random+median", "known-gp+median"),
    *(f"replay+{p}" for p in PRUNERS),
)
"""What the README shows."""
ALL = (
    *DEFAULT,
    *(f"{s}+{p}" for s in ("random", "tpe", "stock-gp", "gp") for p in PRUNERS),
)
"""Every sampler with every pruner too."""
SMALLEST_STEP = 1e-3
"""Of the range; whoever has tried all larger ones tries the best again."""
KNOWN = "known-"
OWN_SAMPLERS = ("stock-gp", "manual", "replay")


def sampler_name(strategy: str) -> str:
    return strategy.partition("+")[0].removeprefix(KNOWN)


def starts(strategy: str) -> Sequence[Mapping[str, Any]]:
    """What a strategy tries before its sampler is asked."""
    return LCBENCH_STARTS if strategy.startswith(KNOWN) else ()


def make_config(strategy: str, space: Mapping[str, Any]) -> StudyConfig:
    """A study file's settings for a strategy, all else as it ships.

    Raises:
        UserError: it names something that a study file cannot.
    """
    names, _, settings = strategy.partition(":")
    sampler, pruner = sampler_name(names), names.partition("+")[2]
    content = {
        "name": "benchmark",
        "space": space,
        "sampler": {} if sampler in OWN_SAMPLERS else {"name": sampler},
        "pruner": {"name": pruner},
        "budget": {"trials": 1},
    }
    overrides = dict(parse_assignment(item) for item in settings.split(",") if item)
    return parse_study(content, f"strategy {strategy}", overrides)


def settings(strategy: str) -> str:
    """A digest of what a study file would say of a strategy, its starts included."""
    config = make_config(strategy, {"row": {"low": 0, "high": 1}})
    said = [config.sampler.model_dump(), config.pruner.model_dump(), *starts(strategy)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]


def make_benchmark_sampler(
    strategy: str, problem: Problem, config: StudyConfig, seed: int
) -> BaseSampler:
    """The sampler of a strategy; a grid's is made by nobody, its points are `enqueued`."""
    match sampler_name(strategy):
        case "stock-gp":
            from optuna.samplers import GPSampler

            return GPSampler(seed=seed, warn_independent_sampling=False)
        case "manual":
            return ManualSampler(distributions(problem.space), seed)
        case "replay" | "grid":
            return RandomSampler(seed=seed)
        case _:
            from search.samplers import make_sampler

            return make_sampler(config.sampler, seed, EPOCHS)


def enqueued(
    strategy: str, problem: Problem, config: StudyConfig, seed: int
) -> list[dict[str, Any]] | None:
    """All points that a strategy will ever try, in order; None if its sampler makes them up."""
    space = distributions(problem.space)
    match sampler_name(strategy):
        case "grid":
            return grid_points(space, config.sampler.grid_points, seed)
        case "replay":
            rows = np.random.default_rng(seed).permutation(problem.space["row"]["high"] + 1)
            return [{"row": int(row)} for row in rows]
        case _:
            return None


def grid_points(space: Space, points_per_range: int, seed: int) -> list[dict[str, Any]]:
    """The product's grid; of one beyond `MOST_GRID_TRIALS`, so many of its points at random.

    The product refuses such a grid; here it is what a patient user would begin to try.
    """
    try:
        return grid(space, points_per_range, seed)
    except UserError:
        random = np.random.default_rng(seed)
        levels = {name: _levels(item, points_per_range) for name, item in space.items()}
        return [
            {name: at(space[name], random.choice(values)) for name, values in levels.items()}
            for _ in range(MOST_GRID_TRIALS)
        ]


def _levels(item: BaseDistribution, points: int) -> list[float]:
    """Quantiles of a parameter's grid values."""
    if isinstance(item, CategoricalDistribution):
        return [(index + 0.5) / len(item.choices) for index in range(len(item.choices))]
    return [index / (points - 1) for index in range(points)]


class ManualSampler(BaseSampler):
    """Trial and error: change one parameter at a time, and keep what was better.

    It begins at the notebook's configuration if the space knows its names, else in the middle of
    every range and at every first choice. One parameter at a time moves to another choice or by a
    sixth of its range (on its scale) up or down; the steps are halved when all have been tried.
    Parallel workers try different changes of the best complete trial.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space = {name: item for name, item in space.items() if not item.single()}
        self._random = np.random.default_rng(seed)
        self._names = [str(name) for name in self._random.permutation(list(self._space))]
        self._asked: dict[int, dict[str, float]] = {}
        self._step = 1 / 6

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Every parameter of the next thing to try."""
        complete = [
            item
            for item in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if item.number in self._asked
        ]
        best = max(complete, key=lambda item: item.value or 0.0, default=None)
        start = self._asked[best.number if best else 0] if self._asked else self._beginning()
        point = start if not self._asked else self._next_change(start)
        self._asked[trial.number] = point
        return {name: at(item, point[name]) for name, item in self._space.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        """Only of parameters that are fixed."""
        return at(distribution, 0.0)

    def _beginning(self) -> dict[str, float]:
        notebook = nearest(self._space, NOTEBOOK) if self._space.keys() <= NOTEBOOK.keys() else {}
        known = notebook if isinstance(notebook, dict) else {}
        return {
            name: _quantile(item, known[name]) if name in known else _middle(item)
            for name, item in self._space.items()
        }

    def _next_change(self, start: Mapping[str, float]) -> dict[str, float]:
        while self._step > SMALLEST_STEP:
            tried = list(self._asked.values())
            for name in self._names:
                for quantile in self._neighbours(name, start[name]):
                    changed = {**start, name: quantile}
                    if changed not in tried:
                        # The next one to be changed is another.
                        self._names.remove(name)
                        self._names.append(name)
                        return changed
            self._step /= 2
        return dict(start)

    def _neighbours(self, name: str, here: float) -> Iterator[float]:
        item = self._space[name]
        if isinstance(item, CategoricalDistribution):
            yield from (level for level in _levels(item, 2) if level != here)
        else:
            for there in (here + self._step, here - self._step):
                bounded = round(min(max(there, 0.0), 1.0), 9)
                if bounded != here:
                    yield bounded


NOTEBOOK: Mapping[str, Any] = {
    "learning_rate": 1e-3,
    "optimizer": "adam",
    "schedule": "constant",
    "batch_size": 64,
    "weight_decay": 0.0,
    "augmentation": "flip+resized-crop",
    "color_jitter": False,
    "dropout": 0.0,
}
"""As `model.train.NOTEBOOK`, which would import torch."""


def _middle(item: BaseDistribution) -> float:
    return _levels(item, 2)[0] if isinstance(item, CategoricalDistribution) else 0.5


def _quantile(item: BaseDistribution, value: Any) -> float:
    """The quantile that `at` would turn into a value, as near as a thousandth."""
    if isinstance(item, CategoricalDistribution):
        return _levels(item, 2)[item.choices.index(value)]
    quantiles = np.linspace(0, 1, 1001)
    distances = [abs(at(item, float(quantile)) - value) for quantile in quantiles]
    return float(quantiles[int(np.argmin(distances))])


def check(strategies: Sequence[str]) -> None:
    """Raise UserError for the first strategy that cannot be made."""
    for strategy in strategies:
        make_config(strategy, {"row": {"low": 0, "high": 1}})


def pairs(strategies: Sequence[str], problems: Sequence[str]) -> list[tuple[str, str]]:
    """(problem, strategy) of all that fit: a replay and the recorded table only each other."""
    return [
        (problem, strategy)
        for problem, strategy in itertools.product(problems, strategies)
        if (problem == "recorded") == (sampler_name(strategy) == "replay")
        and (family(problem) == "lcbench" or not strategy.startswith(KNOWN))
    ]
