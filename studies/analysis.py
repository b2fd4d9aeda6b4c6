"""What the trials of a study say of its search space, and how the best was found; in numbers."""

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.config import Parameter, Range, Scalar, StudyConfig, is_fixed, is_same
from studies.results import TrialRecord, record
from studies.timeline import epochs_trained, runs_of

FEWEST_FOR_IMPORTANCE = 10
"""Trials that have ended, before the importance of a parameter means anything."""
FEWEST_BEST = 5
"""So many trials, or a tenth if that is more, count as the best ones of a study."""
MOST_DRAWN = 20
"""That are drawn, of more the most important ones."""
CELLS = 30
"""Of the surface over two parameters, along a range."""
LEAST_WEIGHT = 0.6
"""Of the trial nearest to a cell, from 1 at the same place; below, nothing is known there."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """A trial has ended."""

    trial: int
    epochs: int
    """Trained by all trials that had ended by then."""
    seconds: float
    """Since the first trial began."""
    value: float | None
    """Of this trial, if it is complete."""
    best: float | None
    """Of the trials that were complete by then."""


def progress(records: Sequence[TrialRecord]) -> list[Step]:
    """What was known when, a step for each trial that has ended, in that order."""
    begins = [
        started
        for item in records
        for started in (item.started, *(run.started for run in item.earlier_runs))
        if started is not None
    ]
    ended = [
        (item.started + timedelta(seconds=item.seconds), item.number, item)
        for item in records
        if item.started is not None and item.seconds is not None
    ]
    steps: list[Step] = []
    epochs, best = 0, None
    for end, _, item in sorted(ended, key=lambda entry: entry[:2]):
        epochs += epochs_trained(runs_of(item))
        value = item.value if item.state == "complete" else None
        best = max((known for known in (best, value) if known is not None), default=None)
        seconds = (end - min(begins)).total_seconds()
        steps.append(Step(item.number, epochs, seconds, value, best))
    return steps


def result(item: TrialRecord) -> float | None:
    """What a trial has shown its parameters to be worth: what it reached, complete or pruned.

    None of one that runs, waits, failed or diverged, or reached no number.
    """
    known = item.value is not None and math.isfinite(item.value)
    return item.value if known and item.state in ("complete", "pruned") else None


def importances(trials: Sequence[FrozenTrial], names: Container[str]) -> dict[str, float]:
    """How much each parameter that varies decides whether a trial is among the best; they add up
    to 1, the largest first. Empty if there are too few trials, or hardly any is above the worst.

    PED-ANOVA compares where the best trials are with where all are. It needs to know of a pruned
    trial no more than that it is not among the best, for which what it had reached will do; and it
    takes no random forest (as fANOVA does) and hardly any time. Nor is one that diverged among the
    best, whatever it had reached.

    Args:
        names: of the parameters that are looked at.
    """
    known = _of_one_space(trials, names)
    results = [result(record(trial)) for trial in known]
    values = [value for value in results if value is not None]
    if len(known) < FEWEST_FOR_IMPORTANCE or not values:
        return {}
    below = min(values) - 1
    ranked = sorted((below if value is None else value for value in results), reverse=True)
    best = max(0.1, FEWEST_BEST / len(known))
    if ranked[math.ceil(best * len(known)) - 1] == ranked[-1]:
        return {}
    storage = optuna.storages.InMemoryStorage()
    storage.create_new_study([StudyDirection.MAXIMIZE], "all")
    study = optuna.load_study(study_name="all", storage=storage)
    study.add_trials(
        optuna.trial.create_trial(
            params=trial.params,
            distributions=trial.distributions,
            value=below if value is None else value,
        )
        for trial, value in zip(known, results, strict=True)
    )
    varied = [
        name
        for name, distribution in known[0].distributions.items()
        if name in names and not distribution.single()
    ]
    # Where scikit-learn is installed this imports it, which takes longer than all the rest.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    evaluator = PedAnovaImportanceEvaluator(target_quantile=best)
    found = get_param_importances(study, evaluator=evaluator, params=varied)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _of_one_space(trials: Sequence[FrozenTrial], names: Container[str]) -> list[FrozenTrial]:
    """The trials that have ended, not failed, but for those of another space than most.

    Somebody may have added these. Optuna would warn, and what keeps a warning back is not safe in
    a thread.
    """
    ended = [
        (trial, frozenset(item for item in trial.distributions.items() if item[0] in names))
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.params
    ]
    spaces = Counter(space for _, space in ended).most_common(1)
    return [trial for trial, space in ended if space == spaces[0][0]]


def varied_parameters(config: StudyConfig, importance: Mapping[str, float]) -> list[str]:
    """The parameters that are not held fixed, the most important first."""
    names = [name for name, parameter in config.space.items() if not is_fixed(parameter)]
    return sorted(names, key=lambda name: -importance.get(name, 0.0))


def which_parameters(count: int, are_ranked: bool = True) -> str:
    """In words, which of so many are drawn.

    Args:
        are_ranked: whether their importance is known.
    """
    if count <= MOST_DRAWN:
        return "the parameters"
    some = f"{MOST_DRAWN} most important" if are_ranked else f"first {MOST_DRAWN}"
    return f"the {some} of {count} parameters"


def with_result(
    records: Sequence[TrialRecord], config: StudyConfig, names: Sequence[str]
) -> list[TrialRecord]:
    """The trials that have a result and a value of each of these parameters.

    A value that the space does not have, as somebody else may have stored it, is none.
    """
    return [
        item
        for item in records
        if result(item) is not None
        and all(_is_in(config.space[name], item.parameters.get(name)) for name in names)
    ]


def _is_in(parameter: Parameter, value: object) -> bool:
    if not isinstance(parameter, Range):
        return any(is_same(choice, value) for choice in parameter)
    return isinstance(value, int | float) and parameter.low <= value <= parameter.high


def are_numbers(choices: Sequence[Scalar]) -> bool:
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in choices)


def sorted_choices(choices: Sequence[Scalar]) -> list[Scalar]:
    """Numbers by size; others as the study file has them."""
    return sorted(choices) if are_numbers(choices) else list(choices)


def choice_index(choices: Sequence[Scalar], value: object) -> int:
    """Where a choice stands."""
    return next(index for index, choice in enumerate(choices) if is_same(choice, value))


@dataclass(frozen=True, slots=True)
class Surface:
    """The mean result over two parameters, smoothed."""

    names: tuple[str, str]
    x: list[Scalar]
    """Values of the first parameter."""
    y: list[Scalar]
    values: list[list[float | None]]
    """By y and x; None where no trial is near."""


def surface(
    records: Sequence[TrialRecord], config: StudyConfig, names: tuple[str, str]
) -> Surface | None:
    """What trials have reached, on average, near each pair of values; None without any.

    Near is meant on each range's own scale; of choices, the same one.
    """
    known = with_result(records, config, names)
    if not known:
        return None
    results = np.array([item.value for item in known])
    # Scott's rule for two dimensions, of values that are spread evenly over [0, 1].
    width = 0.29 * len(known) ** (-1 / 6)
    axes, weights = [], []
    for name in names:
        parameter = config.space[name]
        cells = _cells(parameter)
        at = np.array([_position(parameter, item.parameters[name]) for item in known])
        centres = np.array([_position(parameter, cell) for cell in cells])
        distance = centres[:, None] - at[None, :]
        near = (
            np.exp(-0.5 * (distance / width) ** 2)
            if isinstance(parameter, Range)
            else (distance == 0).astype(np.float64)
        )
        axes.append(cells)
        weights.append(near)
    both = weights[1][:, None, :] * weights[0][None, :, :]
    total = both.sum(axis=2)
    means = (both @ results) / np.maximum(total, 1e-12)
    values = [
        [float(mean) if weight >= LEAST_WEIGHT else None for mean, weight in zip(*row, strict=True)]
        for row in zip(means, both.max(axis=2), strict=True)
    ]
    return Surface(names, axes[0], axes[1], values)


def _cells(parameter: Parameter) -> list[Scalar]:
    if not isinstance(parameter, Range):
        return sorted_choices(parameter)
    low, high = float(parameter.low), float(parameter.high)
    spaced: Array = (np.geomspace if parameter.log else np.linspace)(low, high, CELLS)
    return [float(value) for value in spaced]


def _position(parameter: Parameter, value: Scalar) -> float:
    """From 0 to 1 within a range; of choices, which it is."""
    if not isinstance(parameter, Range):
        return float(choice_index(sorted_choices(parameter), value))
    low, high, at = float(parameter.low), float(parameter.high), float(value)
    if parameter.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)
