from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from data.dataset import load_dataset
from data.errors import UserError
from data.split import split_for_training
from model.train import build_model, parse_hyperparameters
from search.confirm import _difference, judge, missing, plan, prepare_confirmation
from search.prepare import Prepared
from search.run_confirm import describe_confirmation
from studies.checkpoints import Checkpoint, CheckpointDirectory
from studies.config import load_study_file
from studies.confirmation import Confirmation
from studies.results import CONFIRMS, DIVERGED, SEED
from studies.storage import open_storage
from studies.study import OpenedStudy, create_or_continue

RATES = FloatDistribution(1e-4, 0.5, log=True)


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


@pytest.fixture
def searched(storage: RDBStorage, data_cache: Path) -> Prepared:
    """Trial 0, the notebook's, is pruned; trials 1 to 4 are complete, 2 and 3 are one point."""
    config = load_study_file("quickstart", {"sampler.warm_start": "earlier"})
    dataset = load_dataset("cifar10-mini", data_cache)
    opened, is_new = create_or_continue(storage, config, dataset.digest, [])
    for state, rate, value in (
        (TrialState.PRUNED, 1e-3, 0.1),
        (TrialState.COMPLETE, 0.01, 0.4),
        (TrialState.COMPLETE, 0.02, 0.5),
        (TrialState.COMPLETE, 0.02, 0.45),
        (TrialState.COMPLETE, 0.03, 0.3),
    ):
        opened.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params={"learning_rate": rate},
                distributions={"learning_rate": RATES},
                intermediate_values={1: value},
            )
        )
    return Prepared(opened, dataset, split_for_training(dataset, 0.1, 0), is_new)


def test_the_best_different_configurations_and_the_baseline_get_the_same_new_seeds(
    searched: Prepared,
) -> None:
    retrainings = plan(searched.opened, top=2, seeds=3)
    assert [item.trial for item in retrainings] == [2, 1, 0] * 3
    seeds = [item.seed for item in retrainings]
    assert seeds[:3] == [seeds[0]] * 3
    assert len(set(seeds)) == 3
    assert retrainings[0].parameters == {"learning_rate": 0.02}


def test_more_configurations_than_there_are_is_all_of_them(searched: Prepared) -> None:
    assert [item.trial for item in plan(searched.opened, top=9, seeds=1)] == [2, 1, 4, 0]


def test_nothing_complete_is_nothing_to_confirm(storage: RDBStorage) -> None:
    opened, _ = create_or_continue(storage, load_study_file("quickstart"), "0" * 16, [])
    with pytest.raises(UserError, match="no trial is complete yet"):
        plan(opened, top=1, seeds=1)


def _waiting(opened: OpenedStudy) -> list[tuple[int, int]]:
    return [
        (trial.user_attrs[CONFIRMS], trial.user_attrs[SEED])
        for trial in opened.study.trials
        if trial.state == TrialState.WAITING
    ]


def test_a_retraining_is_enqueued_once_and_again_when_it_failed(
    storage: RDBStorage, searched: Prepared
) -> None:
    retrainings = plan(searched.opened, top=1, seeds=2)
    opened = prepare_confirmation(storage, searched, retrainings).opened
    assert opened.config.name == "quickstart-confirm"
    assert opened.config.budget.trials == 4
    assert opened.config.pruner.name == "none"
    assert opened.config.sampler.warm_start is None
    assert searched.opened.config.start
    assert opened.config.start == ()
    assert missing(opened, retrainings) == 4

    again = prepare_confirmation(storage, searched, retrainings).opened
    assert _waiting(again) == [(item.trial, item.seed) for item in retrainings]

    first = opened.study.ask()
    opened.study.tell(first, state=TrialState.FAIL)
    second = opened.study.ask()
    opened.study.tell(second, 0.5)
    assert missing(opened, retrainings) == 3
    repaired = prepare_confirmation(storage, searched, retrainings).opened
    assert sorted(_waiting(repaired)) == sorted(
        (item.trial, item.seed) for item in (retrainings[0], *retrainings[2:])
    )
    assert repaired.config.budget.trials == 4


def test_more_seeds_add_to_an_earlier_confirmation(storage: RDBStorage, searched: Prepared) -> None:
    prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=1))
    opened = prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=3)).opened
    assert len(_waiting(opened)) == 6
    assert opened.config.budget.trials == 6
    assert opened.config.checkpoints.keep == 6, "or what is judged at the end would be removed"


def test_fewer_seeds_withdraw_what_an_interrupted_confirmation_left(
    storage: RDBStorage, searched: Prepared
) -> None:
    prepare_confirmation(storage, searched, plan(searched.opened, top=3, seeds=3))
    fewer = plan(searched.opened, top=1, seeds=1)
    opened = prepare_confirmation(storage, searched, fewer).opened
    assert _waiting(opened) == [(item.trial, item.seed) for item in fewer]
    assert opened.config.budget.trials == 2


def test_two_commands_at_once_leave_a_confirmation_that_can_end(
    storage: RDBStorage, searched: Prepared
) -> None:
    retrainings = plan(searched.opened, top=1, seeds=1)
    opened = prepare_confirmation(storage, searched, retrainings).opened
    for item in retrainings:
        opened.study.enqueue_trial(
            dict(item.parameters), user_attrs={CONFIRMS: item.trial, SEED: item.seed}
        )
    for _ in retrainings:
        opened.study.tell(opened.study.ask(), 0.5)
    assert missing(opened, retrainings) == 0, "its twin, which waits, does not hide what has ended"
    again = prepare_confirmation(storage, searched, retrainings).opened
    assert again.config.budget.trials == 4


def test_another_study_of_the_same_name_is_not_confirmed_by_old_retrainings(
    storage: RDBStorage, searched: Prepared
) -> None:
    retrainings = plan(searched.opened, top=1, seeds=1)
    prepare_confirmation(storage, searched, retrainings)
    another = replace(searched, opened=replace(searched.opened, identity="new"))
    with pytest.raises(UserError, match="'quickstart-confirm' confirms an earlier study"):
        prepare_confirmation(storage, another, retrainings)


def _ended(
    storage: RDBStorage, searched: Prepared, values: list[float | None], directory: Path
) -> Callable[[], Confirmation]:
    """What judges retrainings of the best and the notebook's, with these values in turn.

    None has diverged. The models are untrained.
    """
    retrainings = plan(searched.opened, top=1, seeds=len(values) // 2)
    confirming = prepare_confirmation(storage, searched, retrainings)
    checkpoints = CheckpointDirectory(directory)
    weights = build_model(parse_hyperparameters({"width": 8}), 10).state_dict()
    for number, value in enumerate(values):
        trial = confirming.opened.study.ask()
        if value is None:
            trial.set_user_attr(DIVERGED, "it was too fast")
            confirming.opened.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.suggest_categorical("width", [8])
            checkpoints.save(number, Checkpoint(weights, 1, value))
            confirming.opened.study.tell(trial, value)
    assert missing(confirming.opened, retrainings) == 0
    return lambda: judge(searched.opened, confirming, retrainings, checkpoints, torch.device("cpu"))


def test_what_lost_a_seed_counts_less_and_has_no_interval(
    storage: RDBStorage, searched: Prepared, tmp_path: Path
) -> None:
    found = _ended(storage, searched, [0.6, 0.3, None, 0.5], tmp_path)()
    assert found.winner.trial == 0
    assert (found.winner.mean, found.winner.diverged) == (0.4, 0)
    assert (found.candidates[1].mean, found.candidates[1].diverged) == (0.3, 1)
    assert found.test is not None
    assert found.test.seeds == 2
    assert found.baseline is None, "it is the winner itself"

    assert "trial 2: 30.00% ± 42.43% (1 diverged, counted as 0)" in describe_confirmation(found)


def test_an_answer_that_was_given_is_kept(
    storage: RDBStorage, searched: Prepared, tmp_path: Path
) -> None:
    ask = _ended(storage, searched, [0.6, 0.3, 0.5, None], tmp_path)
    found = ask()
    assert found.winner.trial == 2
    assert found.baseline is not None
    assert (found.baseline.seeds, found.difference) == (1, None)
    shown = describe_confirmation(found)
    assert f"test accuracy {found.baseline.mean:.2%} (of the 1 that did not diverge)" in shown
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert ask() == found


def test_without_a_survivor_there_is_no_winner(
    storage: RDBStorage, searched: Prepared, tmp_path: Path
) -> None:
    ask = _ended(storage, searched, [None, None], tmp_path)
    with pytest.raises(UserError, match="every retraining diverged"):
        ask()


def test_the_interval_of_a_difference_is_welchs() -> None:
    # By hand: means 0.5 and 0.3, variances 1e-4 and 4e-4 of 3 each, so a standard error of
    # sqrt(5e-4 / 3) and 25 / 8.5 = 2.941 degrees of freedom, whose t at 97.5% is 3.2146.
    difference = _difference([0.49, 0.5, 0.51], [0.28, 0.3, 0.32])
    assert difference == pytest.approx((0.2, 0.2 - 0.0415, 0.2 + 0.0415), abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    assert _difference([0.5], [0.3]) is None
