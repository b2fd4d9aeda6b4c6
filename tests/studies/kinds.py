"""Studies of every kind that a report or the dashboard can be asked for."""

import json
import math
import re
from functools import cache
from typing import Any

from optuna.storages import BaseStorage

from studies.findings import Findings
from studies.study import OpenedStudy
from tests.benchmarks.curves import SPACE, read_table
from tests.studies.trials import findings_of, found, study_of

RATE = {"low": 1e-4, "high": 1.0, "log": True}
SECTIONS = (
    *("best-so-far", "top", "learning-curves", "importance", "slices", "pair"),
    *("parallel-coordinates", "timeline", "cost", "reproduce"),
)
HOSTILE = "</script><script>alert(1)</script>"


def recorded_trials(count: int) -> list[tuple[str, dict[str, Any], list[float]]]:
    """Of our own trial: the recorded curves, every second one pruned after 3 epochs."""
    rows = read_table()[1]
    trials = []
    for number in range(count):
        row = rows[number % len(rows)]
        accuracies = row["accuracies"] or [0.1]
        if number % 2:
            accuracies = accuracies[:3]
        trials.append(("pruned" if number % 2 else "complete", row["parameters"], accuracies))
    return trials


@cache
def recorded_study(count: int) -> OpenedStudy:
    return study_of({"name": "recorded", "space": SPACE}, recorded_trials(count))


@cache
def recorded(count: int) -> Findings:
    return findings_of(recorded_study(count), with_baseline=True)


def one_trial() -> Findings:
    return found(
        {"name": "one", "space": {"rate": RATE}}, [("complete", {"rate": 0.1}, [0.1, 0.2])], True
    )


def none_finished() -> Findings:
    trials = [("running", {"rate": 0.1}, [0.1]), ("running", {}, []), ("waiting", {}, [])]
    return found({"name": "none", "space": {"rate": RATE}}, trials)


def none_begun() -> Findings:
    return found({"name": "new", "space": {"rate": RATE}}, [])


def all_pruned_study() -> OpenedStudy:
    trials = [("pruned", {"rate": 0.01 * (i + 1), "on": i % 2 == 0}, [0.01 * i]) for i in range(12)]
    return study_of({"name": "pruned", "space": {"rate": RATE, "on": [True, False]}}, trials)


def all_pruned() -> Findings:
    return findings_of(all_pruned_study())


def study_of_25_parameters(trials: int) -> OpenedStudy:
    names = [f"x{index:02}" for index in range(25)]
    settings = {
        "name": "many",
        "trial": {"objective": "own:train"},
        "space": {name: {"low": 0.0, "high": 1.0} for name in names},
    }
    # The last parameter alone decides.
    return study_of(
        settings,
        [
            (
                "complete",
                {name: (7 * i + k * k) % trials / trials for k, name in enumerate(names)}
                | {"x24": i / trials},
                [i / trials],
            )
            for i in range(trials)
        ],
    )


def grid_of_one_parameter(storage: BaseStorage | None = None) -> Findings:
    settings = {"trial": {"objective": "own:train", "epochs": 2}, "sampler": {"name": "grid"}}
    trials = [("complete", {"x": x}, [x / 2, x]) for x in (0.25, 0.75, 0.5)]
    space = {"x": [0.25, 0.5, 0.75]}
    return found({"name": "grid", "space": space, **settings}, trials, storage=storage)


def without_numbers() -> Findings:
    """NaN, and names and choices that a browser could take for its own."""
    names = [HOSTILE, "<img src=x onerror=alert(2)>", True, 1]
    trials: list[tuple[str, dict[str, Any], list[float]]] = [
        (
            "pruned" if i % 3 else "complete",
            {"x": i / 20, "<b>": names[i % 4]},
            [math.nan, i / 40] if i % 3 else [0.1, math.nan, i / 30],
        )
        for i in range(16)
    ]
    trials += [("pruned", {"x": 0.5, "<b>": True}, [math.nan]), ("failed", {}, [])]
    space = {"x": {"low": 0.0, "high": 1.0}, "<b>": names}
    settings = {"trial": {"objective": "own:train"}}
    return found({"name": "nan", "space": space, **settings}, trials)


def data_of(text: str) -> dict[str, Any]:
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data: dict[str, Any] = json.loads(content)
    return data
