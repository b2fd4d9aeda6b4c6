"""Honest winners: the best of many noisy trials is partly luck, so the top ones are trained again.

The retrainings are trials of a study of their own, `NAME-confirm`, so that any worker can run them
and the dashboard shows them. The winner is chosen by mean validation accuracy; only then are the
test images looked at.
"""

import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from data.errors import UserError
from search.budget import budgeted, withdraw
from search.export import baseline_record, test_accuracy, usable_checkpoint
from search.prepare import Prepared
from search.samplers import derived_seed
from studies.checkpoints import CheckpointDirectory
from studies.config import DEFAULT_OBJECTIVE, StudyConfig, parse_study
from studies.confirmation import (
    CONFIRMATION,
    SEARCHED,
    Candidate,
    Confirmation,
    Lead,
    Stored,
    TestResult,
    check_is_search,
    confirming_name,
    stored_in,
)
from studies.ownership import OwnedStorage
from studies.results import CONFIRMS, SEED, TrialRecord, rank, record
from studies.study import (
    DATA_DIGEST,
    OpenedStudy,
    best_record,
    create_or_continue,
    exists,
    open_study,
)

CONFIDENCE = 0.95
ENDED = ("complete", "diverged")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retraining:
    """One configuration with one seed."""

    trial: int
    """Its number in the search."""
    seed: int
    parameters: Mapping[str, Any]


def plan(opened: OpenedStudy, top: int, seeds: int) -> list[Retraining]:
    """What to train: the best `top` configurations and the notebook's, each with new seeds.

    All configurations have the same seeds, and seed by seed they come in turn: what is trained
    when it is interrupted is of use.

    Raises:
        UserError: no trial is complete yet, or the study is itself a confirmation.
    """
    check_is_search(opened)
    best_record(opened)
    chosen: list[TrialRecord] = []
    for item in rank(opened.records):
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
    storage: OwnedStorage, searched: Prepared, retrainings: Sequence[Retraining]
) -> Prepared:
    """Create or continue the confirming study, with every retraining enqueued that it lacks.

    What an earlier, interrupted confirmation has left waiting and is not asked for now is
    withdrawn.

    Raises:
        UserError: what has the confirming study's name does not confirm this study, but an earlier
            one that had its name.
    """
    found = searched.opened
    name = confirming_name(found.config.name)
    # First: that the two differ in settings or data as well is not what is wrong.
    if (
        exists(storage, name)
        and open_study(name, storage).study.user_attrs.get(SEARCHED) != found.identity
    ):
        raise UserError(
            f"study {name!r} does not confirm this study {found.config.name!r}, but perhaps an "
            "earlier one of that name; delete it (hpsearch dashboard --allow-edits), or run the "
            "search under another --name"
        )
    config = _config(found.config, name, len(retrainings))
    digest = str(found.study.user_attrs[DATA_DIGEST])
    opened, is_new = create_or_continue(
        storage, config, digest, enqueued=[], attributes={SEARCHED: found.identity}
    )
    asked = {(item.trial, item.seed) for item in retrainings}
    for trial in opened.study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING and _key(trial) not in asked:
            withdraw(storage, trial._trial_id)
    present = _by_retraining(opened)
    for item in retrainings:
        if (item.trial, item.seed) not in present:
            opened.study.enqueue_trial(
                dict(item.parameters), user_attrs={CONFIRMS: item.trial, SEED: item.seed}
            )
    # Of earlier confirmations there may be more than are asked for now.
    alive = budgeted(opened.study.get_trials(deepcopy=False), None)
    config = _config(found.config, name, len(alive))
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
        # All: a worker keeps to what it read when it began, and a larger confirmation may follow.
        "checkpoints.keep": sys.maxsize,
    }
    return parse_study(config.model_dump(mode="json"), f"study {config.name!r}", changes)


def _key(trial: FrozenTrial) -> tuple[int, int] | None:
    """Which retraining a trial of the confirming study is: trial and seed."""
    number, seed = trial.user_attrs.get(CONFIRMS), trial.user_attrs.get(SEED)
    return (number, seed) if isinstance(number, int) and isinstance(seed, int) else None


def _by_retraining(opened: OpenedStudy) -> dict[tuple[int, int], TrialRecord]:
    """The retrainings that have not failed, by trial and seed.

    Two commands at once may have enqueued one twice: then it is the one that has ended.
    """
    found: dict[tuple[int, int], TrialRecord] = {}
    for trial in opened.study.get_trials(deepcopy=False):
        key, item = _key(trial), record(trial)
        if key is None or item.state == "failed":
            continue
        if key not in found or item.state in ENDED:
            found[key] = item
    return found


def missing(opened: OpenedStudy, retrainings: Sequence[Retraining]) -> int:
    """How many retrainings have not ended, or have failed."""
    present = _by_retraining(opened)
    ended = {key for key, item in present.items() if item.state in ENDED}
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
    there.

    Args:
        retrainings: all of which have ended.

    Raises:
        UserError: every retraining of the best configurations diverged.
    """
    asked = sorted([item.trial, item.seed] for item in retrainings)
    stored = stored_in(confirming.opened)
    if stored and stored.asked == asked:
        return stored.result
    result = _judge(searched, confirming, retrainings, checkpoints, device)
    confirming.opened.study.set_user_attr(CONFIRMATION, asdict(Stored(asked, result)))
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
    winner, *others = candidates
    runs = rank(results[winner.trial])
    if not runs:
        raise UserError("every retraining diverged, so that there is no winner")
    test = baseline = difference = lead = None
    if others and not (winner.diverged or others[0].diverged):
        second = others[0].trial
        ahead = _difference(_values(results[winner.trial]), _values(results[second]))
        lead = Lead(second, ahead) if ahead else None
    if searched.config.trial.objective == DEFAULT_OBJECTIVE:

        def on_test(number: int) -> list[float]:
            found = []
            for run in rank(results[number]):
                try:
                    checkpoint = usable_checkpoint(run, checkpoints)
                except UserError as error:
                    logger.warning("%s; it is not measured on the test images", error)
                    continue
                found.append(test_accuracy(confirming, run, checkpoint, device))
            return found

        of_winner = on_test(winner.trial)
        test = _test_result(of_winner, runs)
        notebook = baseline_record(searched)
        # Another trial of the same configuration may stand for it.
        same = [n for n in results if notebook and trials[n].params == notebook.parameters]
        if same and winner.trial not in same:
            of_baseline = on_test(same[0])
            baseline = _test_result(of_baseline, rank(results[same[0]]))
            if len(of_winner) == len(of_baseline) == len(results[winner.trial]):
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
        lead=lead,
    )


def _candidate(searched: TrialRecord, runs: Sequence[TrialRecord]) -> Candidate:
    values = _values(runs)
    return Candidate(
        trial=searched.number,
        claimed=searched.value if searched.state == "complete" else None,
        mean=statistics.mean(values),
        std=statistics.stdev(values) if values[1:] else None,
        diverged=sum(run.state == "diverged" for run in runs),
    )


def _values(runs: Sequence[TrialRecord]) -> list[float]:
    return [(run.value or 0.0) if run.state == "complete" else 0.0 for run in runs]


def _test_result(accuracies: Sequence[float], runs: Sequence[TrialRecord]) -> TestResult | None:
    """Of those among these runs, none of which diverged, whose weights are there."""
    if not accuracies:
        return None
    return TestResult(
        mean=statistics.mean(accuracies),
        std=statistics.stdev(accuracies) if accuracies[1:] else None,
        seeds=len(accuracies),
        lost=len(runs) - len(accuracies),
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
    from scipy import stats  # Takes half a second, which every worker would pay.

    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    mean = statistics.mean(first) - statistics.mean(second)
    return mean, float(interval.low), float(interval.high)
