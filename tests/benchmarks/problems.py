"""What the search benchmark searches: problems whose learning curves cost nothing to look up."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from pydantic import TypeAdapter

from search.space import at, make_space
from studies.config import Parameter

EPOCHS = 10
REFERENCES = 20_000
"""Random configurations that tell what the best and the median are."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a regret of 0 and of 1 mean on a problem."""

    best: float
    """The best of `REFERENCES` random configurations, or the optimum where it is known."""
    median: float

    def regret(self, value: float) -> float:
        """0 at the best, 1 at the median, below 0 beyond the best."""
        return (self.best - value) / (self.best - self.median)


class Problem(Protocol):
    """A search space and the learning curve of each of its points."""

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> Mapping[str, Any]:
        """As in a study file's `[space]`."""

    @property
    def scale(self) -> Scale: ...

    def curve(self, parameters: Mapping[str, Any], seed: int) -> NDArray[np.float64]:
        """Validation accuracy in [0, 1] after each of the ten epochs, as a trial would see it."""

    def truth(self, parameters: Mapping[str, Any]) -> float:
        """The best epoch's accuracy without the noise: what many seeds would confirm."""


def distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """The distributions of a `[space]`."""
    return make_space(TypeAdapter(dict[str, Parameter]).validate_python(space))


def random_points(space: Mapping[str, Any], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Uniform random configurations of a `[space]`."""
    items = distributions(space)
    return [
        {name: at(item, u) for (name, item), u in zip(items.items(), point, strict=True)}
        for point in np.random.default_rng(seed).random((count, len(items)))
    ]


def family(problem: str) -> str:
    """Problems of one family share a row of the table: `lcbench-…` and `synthetic-…` do."""
    first = problem.partition("-")[0]
    return first if first in ("lcbench", "synthetic") else problem


# LCBench --------------------------------------------------------------------------------------

LCBENCH_DEVELOPMENT = frozenset(
    {
        *("7593", "34539", "126025", "126026", "126029", "146212", "167104", "167149"),
        *("167152", "167161", "167168", "167181", "167184", "167185", "167200", "167201"),
    }
)
"""Every choice was made on these tasks alone; the figures are of the others."""

LCBENCH_SPACE: Mapping[str, Any] = {
    "batch_size": {"low": 16, "high": 512, "log": True},
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "momentum": {"low": 0.1, "high": 0.99},
    "weight_decay": {"low": 1e-5, "high": 0.1},
    "num_layers": {"low": 1, "high": 5},
    "max_units": {"low": 64, "high": 1024, "log": True},
    "max_dropout": {"low": 0.0, "high": 1.0},
}


class LCBench:
    """A task of the LCBench surrogate (Zimmer, Lindauer and Hutter, 2021; YAHPO Gym).

    Ten reports a trial: after epochs 5, 10, ... 50 of the surrogate's.
    """

    space = LCBENCH_SPACE

    def __init__(self, directory: Path, task: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        self._session = onnxruntime.InferenceSession(str(directory / "model.onnx"), options)
        self._task = _task_number(directory, task)
        self.name = f"lcbench-{task}"
        points = random_points(LCBENCH_SPACE, REFERENCES)
        # In parts: the network's activations for all of them would fill the memory.
        rows = np.array_split([list(point.values()) for point in points], REFERENCES // 500)
        values = np.concatenate([self._curves(part).max(axis=1) for part in rows])
        self.scale = Scale(float(values.max()), float(np.median(values)))

    def curve(self, parameters: Mapping[str, Any], seed: int) -> NDArray[np.float64]:
        row = np.array([[parameters[name] for name in LCBENCH_SPACE]], dtype=np.float64)
        curve: NDArray[np.float64] = self._curves(row)[0]
        return curve

    def truth(self, parameters: Mapping[str, Any]) -> float:
        return float(self.curve(parameters, 0).max())

    def _curves(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        steps = np.arange(1, EPOCHS + 1) * 5.0
        continuous = np.column_stack([np.tile(steps, len(rows)), rows.repeat(EPOCHS, axis=0)])
        task = np.full((len(continuous), 1), self._task, dtype=np.int32)
        (output,) = self._session.run(
            None, {"x_cont": continuous.astype(np.float32), "x_cat": task}
        )
        curves: NDArray[np.float64] = (output[:, 1].astype(np.float64) / 100).reshape(-1, EPOCHS)
        return curves


@cache
def load_lcbench(directory: Path, task: str) -> LCBench:
    """A task, whose references take seconds to evaluate; once a process."""
    return LCBench(directory, task)


def lcbench_tasks(directory: Path) -> list[str]:
    """All tasks of the surrogate."""
    space = json.loads((directory / "config_space.json").read_text())
    tasks: list[str] = space["hyperparameters"][0]["choices"]
    return sorted(tasks, key=int)


def _task_number(directory: Path, task: str) -> int:
    encoding = json.loads((directory / "encoding.json").read_text())
    number: int = encoding["OpenML_task_id"][task]
    return number
