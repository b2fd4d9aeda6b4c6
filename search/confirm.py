"""Honest winners: the best of many noisy trials is partly luck, so the top ones are trained again.

The retrainings are trials of a study of their own, `NAME-confirm`, so that any worker can run them
and the dashboard shows them. The winner is chosen by mean validation accuracy; only then are the
test images looked at.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from optuna.storages import RDBStorage
from scipy import stats

from data.errors import UserError
from search.export import baseline_record, best_record, test_accuracy
from search.prepare import Prepared
from search.samplers import derived_seed
from studies.checkpoints import CheckpointDirectory
from studies.config import DEFAULT_OBJECTIVE, StudyConfig, parse_study
from studies.results import CONFIRMS, SEED, TrialRecord, rank, record
from studies.study import DATA_DIGEST, OpenedStudy, create_or_continue, exists, open_study

CONFIRMATION = "confirmation"
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that was trained with several seeds."""

    trial: int
    """Its number in the search."""
    claimed: float | None
    """What the search reported for it: validation accuracy in [0, 1]; None if it was pruned."""
    mean: float
    """Validation accuracy over the seeds. A retraining that diverged counts as 0."""
    std: float | None
    """Sample standard deviation; None of a single seed."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """Accuracy on the test images, in [0, 1], over the seeds."""

    mean: float
    std: float | None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What the retrainings showed."""

    candidates: tuple[Candidate, ...]
    """Best first; the notebook's configuration is among them."""
    winner: Candidate
    trial: int
    """The winner's best retraining, whose model is exported: its number in the confirming study."""
    parameters: Mapping[str, Any]
    seeds: int
    test: TestResult | None
    """None for an objective of the user's own."""
    baseline: TestResult | None
    """Of the notebook's configuration, if the search had it and it is not the winner."""
    difference: tuple[float, float, float] | None
    """Winner's test accuracy minus the baseline's, and its confidence interval (Welch)."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """One configuration with one seed."""

    trial: int
    """Its number in the search."""
    seed: int
    parameters: Mapping[str, Any]


def confirming_name(name: str) -> str:
    """The name of the study that confirms a study."""
    return f"{name}-confirm"


def plan(opened: OpenedStudy, top: int, seeds: int) -> list[Retraining]:
    """What to train: the best `top` configurations and the notebook's, each with new seeds.

    All configurations have the same seeds, and seed by seed they come in turn: what is trained
    when it is interrupted is of use.

    Raises:
        UserError: no trial is complete yet.
    """
    best_record(opened)
    records = [record(trial) for trial in opened.study.get_trials(deepcopy=False)]
    chosen: list[TrialRecord] = []
    for item in rank(records):
        if len(chosen) < top and all(item.parameters != other.parameters for other in chosen):
            chosen.append(item)
    baseline = baseline_record(opened)
    if baseline and all(baseline.parameters != item.parameters for item in chosen):
        chosen.append(baseline)
    return [
        Retraining(item.number, derived_seed(opened.config.seed, "confirm", index), item.parameters)
        for index in range(seeds)
        for item in chosen
    ]


def prepare_confirmation(
    storage: RDBStorage, searched: Prepared, retrainings: Sequence[Retraining]
) -> Prepared:
    """Create or continue the confirming study, with every retraining enqueued that it lacks."""
    found = searched.opened
    name = confirming_name(found.config.name)
    config = _config(found.config, name, len(retrainings))
    digest = str(found.study.user_attrs[DATA_DIGEST])
    opened, is_new = create_or_continue(storage, config, digest, enqueued=[])
    present = _by_retraining(opened)
    for item in retrainings:
        if (item.trial, item.seed) not in present:
            opened.study.enqueue_trial(
                dict(item.parameters), user_attrs={CONFIRMS: item.trial, SEED: item.seed}
            )
    alive = len(_by_retraining(opened))
    # Of an earlier confirmation there may be more than are asked for now.
    config = _config(found.config, name, max(alive, len(retrainings)))
    opened, _ = create_or_continue(storage, config, digest, enqueued=[])
    return Prepared(opened, searched.dataset, searched.data, is_new)


def _config(config: StudyConfig, name: str, retrainings: int) -> StudyConfig:
    changes: dict[str, Any] = {
        "name": name,
        "start": [],
        # Of a grid, too, all trials are enqueued and no worker makes one up.
        "sampler.name": "grid",
        "sampler.warm_start": None,
        "pruner.name": "none",
        "budget": {"trials": retrainings},
        "checkpoints.keep": retrainings,
    }
    return parse_study(config.model_dump(mode="json"), f"study {config.name!r}", changes)


def _by_retraining(opened: OpenedStudy) -> dict[tuple[int, int], TrialRecord]:
    """The retrainings that have not failed, by trial and seed."""
    return {
        (trial.user_attrs[CONFIRMS], trial.user_attrs[SEED]): record(trial)
        for trial in opened.study.get_trials(deepcopy=False)
        if CONFIRMS in trial.user_attrs and record(trial).state != "failed"
    }


def missing(opened: OpenedStudy, retrainings: Sequence[Retraining]) -> int:
    """How many retrainings have not ended, or have failed."""
    present = _by_retraining(opened)
    ended = {key for key, item in present.items() if item.state in ("complete", "diverged")}
    return sum((item.trial, item.seed) not in ended for item in retrainings)


def judge(
    searched: OpenedStudy,
    confirming: Prepared,
    retrainings: Sequence[Retraining],
    checkpoints: CheckpointDirectory,
    device: torch.device,
) -> Confirmation:
    """Choose the winner by validation accuracy, then measure it on the test images.

    The result is kept in the confirming study. The same question asked again is answered from
    there, without another look at the test images.

    Args:
        retrainings: all of which have ended.

    Raises:
        UserError: every retraining of the best configurations diverged, or a checkpoint is gone.
    """
    asked = sorted([item.trial, item.seed] for item in retrainings)
    stored = confirming.opened.study.user_attrs.get(CONFIRMATION)
    if stored and stored["asked"] == asked:
        return _from_json(stored["result"])
    result = _judge(searched, confirming, retrainings, checkpoints, device)
    confirming.opened.study.set_user_attr(CONFIRMATION, {"asked": asked, "result": asdict(result)})
    return result


def _judge(
    searched: OpenedStudy,
    confirming: Prepared,
    retrainings: Sequence[Retraining],
    checkpoints: CheckpointDirectory,
    device: torch.device,
) -> Confirmation:
    present = _by_retraining(confirming.opened)
    results: dict[int, list[TrialRecord]] = {}
    for item in retrainings:
        results.setdefault(item.trial, []).append(present[item.trial, item.seed])
    trials = searched.study.get_trials(deepcopy=False)
    candidates = sorted(
        (_candidate(record(trials[number]), runs) for number, runs in results.items()),
        key=lambda candidate: -candidate.mean,
    )
    winner = candidates[0]
    runs = rank(results[winner.trial])
    if not runs:
        raise UserError("every retraining diverged, so that there is no winner")
    test = baseline = difference = None
    if searched.config.trial.objective == DEFAULT_OBJECTIVE:

        def on_test(number: int) -> list[float]:
            return [
                test_accuracy(confirming, run, checkpoints.load(run.number), device)
                for run in rank(results[number])
            ]

        of_winner = on_test(winner.trial)
        test = _test_result(of_winner)
        notebook = baseline_record(searched)
        if notebook and notebook.number in results and notebook.number != winner.trial:
            of_baseline = on_test(notebook.number)
            if of_baseline:
                baseline = _test_result(of_baseline)
                difference = _difference(of_winner, of_baseline)
    return Confirmation(
        candidates=tuple(candidates),
        winner=winner,
        trial=runs[0].number,
        parameters=runs[0].parameters,
        seeds=len(results[winner.trial]),
        test=test,
        baseline=baseline,
        difference=difference,
    )


def _candidate(searched: TrialRecord, runs: Sequence[TrialRecord]) -> Candidate:
    values = [(run.value or 0.0) if run.state == "complete" else 0.0 for run in runs]
    return Candidate(
        trial=searched.number,
        claimed=searched.value if searched.state == "complete" else None,
        mean=statistics.mean(values),
        std=statistics.stdev(values) if values[1:] else None,
    )


def _test_result(accuracies: Sequence[float]) -> TestResult:
    return TestResult(
        statistics.mean(accuracies), statistics.stdev(accuracies) if accuracies[1:] else None
    )


def _difference(
    first: Sequence[float], second: Sequence[float]
) -> tuple[float, float, float] | None:
    """The difference of the means, and its confidence interval without equal variances."""
    if (
        not (first[1:] and second[1:])
        or statistics.pvariance([*first]) + statistics.pvariance([*second]) == 0
    ):
        return None
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    mean = statistics.mean(first) - statistics.mean(second)
    return mean, float(interval.low), float(interval.high)


def _from_json(document: Mapping[str, Any]) -> Confirmation:
    return Confirmation(
        candidates=tuple(Candidate(**item) for item in document["candidates"]),
        winner=Candidate(**document["winner"]),
        trial=document["trial"],
        parameters=document["parameters"],
        seeds=document["seeds"],
        test=TestResult(**document["test"]) if document["test"] else None,
        baseline=TestResult(**document["baseline"]) if document["baseline"] else None,
        difference=tuple(document["difference"]) if document["difference"] else None,
    )


def confirmation_of(storage: RDBStorage, name: str) -> Confirmation | None:
    """The confirmation of a study, if there is one."""
    if not exists(storage, confirming_name(name)):
        return None
    stored = open_study(storage, confirming_name(name)).study.user_attrs.get(CONFIRMATION)
    return _from_json(stored["result"]) if stored else None
