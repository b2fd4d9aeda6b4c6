from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from data.dataset import load_dataset
from data.errors import UserError
from data.split import split_for_training
from model.hyperparameters import parse_hyperparameters
from model.train import build_model
from search.confirm import _difference, judge, missing, plan, prepare_confirmation
from search.enqueue import enqueue_trial
from search.export import describe
from search.prepare import Prepared, create_from_file
from search.run import RunOptions
from search.run_confirm import confirm_study, describe_confirmation
from search.run_export import export_study
from studies.checkpoints import Checkpoint, CheckpointDirectory, superfluous, weights_name
from studies.config import TrialSettings, load_study_file
from studies.confirmation import Confirmation, confirmation_of
from studies.findings import findings
from studies.ownership import OwnedStorage
from studies.report import report_page
from studies.results import CONFIRMS, DIVERGED, SEED, TrialRecord, record, utc_now
from studies.storage import open_storage
from studies.stores import Folder
from studies.study import OpenedStudy, create_or_continue, open_study, stored_config

RATES = FloatDistribution(1e-4, 0.5, log=True)


@pytest.fixture
def storage(tmp_path: Path) -> OwnedStorage:
    return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


@pytest.fixture
def searched(storage: OwnedStorage, data_cache: Path) -> Prepared:
    """Trial 0, the notebook's, is pruned; trials 1 to 4 are complete, 2 and 3 are one point."""
    config = load_study_file(
        "quickstart", {"sampler.warm_start": "earlier", "start": [{"batch_size": 128}]}
    )
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


def test_nothing_complete_is_nothing_to_confirm(storage: OwnedStorage) -> None:
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
    storage: OwnedStorage, searched: Prepared
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


def test_more_seeds_add_to_an_earlier_confirmation(
    storage: OwnedStorage, searched: Prepared
) -> None:
    prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=1))
    opened = prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=3)).opened
    assert len(_waiting(opened)) == 6
    assert opened.config.budget.trials == 6


def test_a_worker_of_a_smaller_confirmation_that_still_runs_removes_no_checkpoint(
    storage: OwnedStorage, searched: Prepared
) -> None:
    # It knows the settings from when it began; meanwhile others train for a larger one.
    smaller = prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=1)).opened
    larger = prepare_confirmation(storage, searched, plan(searched.opened, top=3, seeds=3)).opened
    for _ in range(12):
        larger.study.tell(larger.study.ask(), 0.5)
    records = [record(trial) for trial in larger.study.trials]
    keep = smaller.config.checkpoints.keep
    assert superfluous(map(weights_name, range(12)), lambda _: records, keep) == []


def test_fewer_seeds_withdraw_what_an_interrupted_confirmation_left(
    storage: OwnedStorage, searched: Prepared
) -> None:
    prepare_confirmation(storage, searched, plan(searched.opened, top=3, seeds=3))
    fewer = plan(searched.opened, top=1, seeds=1)
    opened = prepare_confirmation(storage, searched, fewer).opened
    assert _waiting(opened) == [(item.trial, item.seed) for item in fewer]
    assert opened.config.budget.trials == 2


def test_two_commands_at_once_leave_a_confirmation_that_can_end(
    storage: OwnedStorage, searched: Prepared
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
    storage: OwnedStorage, searched: Prepared
) -> None:
    retrainings = plan(searched.opened, top=1, seeds=1)
    prepare_confirmation(storage, searched, retrainings)
    another = replace(searched, opened=replace(searched.opened, identity="new"))
    with pytest.raises(
        UserError, match="'quickstart-confirm' does not confirm this study 'quickstart'"
    ):
        prepare_confirmation(storage, another, retrainings)


def test_an_earlier_study_s_confirmation_is_named_whatever_else_differs_and_left_as_it_was(
    storage: OwnedStorage, searched: Prepared
) -> None:
    before = prepare_confirmation(storage, searched, plan(searched.opened, top=3, seeds=3)).opened
    longer = searched.opened.config.model_copy(update={"trial": TrialSettings(epochs=3)})
    another = replace(searched, opened=replace(searched.opened, config=longer, identity="new"))
    with pytest.raises(UserError) as error:
        prepare_confirmation(storage, another, plan(searched.opened, top=1, seeds=1))
    assert "delete it (hpsearch dashboard --allow-edits)" in str(error.value)
    assert "or run the search under another --name" in str(error.value)
    assert open_study("quickstart-confirm", storage).config == before.config


def test_a_study_that_happens_to_have_the_name_is_not_taken_for_a_confirmation(
    storage: OwnedStorage, searched: Prepared
) -> None:
    own = load_study_file("quickstart", {"name": "quickstart-confirm"})
    create_or_continue(storage, own, "0" * 16, [])
    assert confirmation_of(searched.opened) is None
    with pytest.raises(
        UserError, match="'quickstart-confirm' does not confirm this study 'quickstart'"
    ):
        prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=1))


def test_a_confirmation_can_be_run_by_its_name(
    storage: OwnedStorage, searched: Prepared, data_cache: Path
) -> None:
    retrainings = plan(searched.opened, top=1, seeds=1)
    confirming = prepare_confirmation(storage, searched, retrainings).opened
    config = stored_config(storage, confirming.config.name, {})
    # It borrows the sampler "grid", but quickstart's grid would have too many points.
    opened = create_from_file(storage, config, config.name, data_cache).opened
    assert _waiting(opened) == [(item.trial, item.seed) for item in retrainings]


def test_a_confirmation_is_neither_confirmed_nor_given_other_trials(
    storage: OwnedStorage, searched: Prepared
) -> None:
    confirming = prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=1))
    said = (
        "'quickstart-confirm' is the confirmation of 'quickstart'; .* hpsearch confirm quickstart"
    )
    with pytest.raises(UserError, match=said):
        plan(confirming.opened, top=1, seeds=1)
    with pytest.raises(UserError, match=said):
        enqueue_trial(confirming.opened, {"learning_rate": 0.05})
    assert len(confirming.opened.study.trials) == 2, "the best and the notebook's"


def test_an_objective_that_only_the_database_names_is_refused_before_its_import(
    storage: OwnedStorage, tmp_path: Path
) -> None:
    own = load_study_file("quickstart", {"trial.objective": "nowhere:train"})
    create_or_continue(storage, own, "0" * 16, [])
    options = RunOptions(root=tmp_path, workers=1)
    for trusted in (None, "elsewhere:train"):
        with pytest.raises(UserError, match="'nowhere:train', which only the database says"):
            confirm_study(storage, "quickstart", options, trusted_objective=trusted)
    with pytest.raises(UserError, match="no trial is complete yet"):
        confirm_study(storage, "quickstart", options, trusted_objective="nowhere:train")


def _ended(
    storage: OwnedStorage,
    searched: Prepared,
    values: list[float | None],
    directory: Path,
    top: int = 1,
) -> Callable[[], Confirmation]:
    """What judges retrainings of the best and the notebook's, with these values in turn.

    None has diverged. The models are untrained.
    """
    retrainings = plan(searched.opened, top, seeds=len(values) // 2)
    confirming = prepare_confirmation(storage, searched, retrainings)
    checkpoints = CheckpointDirectory(Folder(directory))
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
    storage: OwnedStorage, searched: Prepared, tmp_path: Path
) -> None:
    found = _ended(storage, searched, [0.6, 0.3, None, 0.5], tmp_path)()
    assert found.winner.trial == 0
    assert (found.winner.mean, found.winner.diverged) == (0.4, 0)
    assert (found.candidates[1].mean, found.candidates[1].diverged) == (0.3, 1)
    assert found.test is not None
    assert found.test.seeds == 2
    assert found.baseline is None, "it is the winner itself"

    assert "trial 2: 30.00% ± 42.43% (1 diverged, counted as 0)" in describe_confirmation(found)


def test_a_winner_that_lost_a_seed_is_said_to_and_has_no_interval(
    storage: OwnedStorage, searched: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_in_validation(_: Prepared, run: TrialRecord, *__: object) -> float:
        assert run.value is not None
        return run.value

    monkeypatch.setattr("search.confirm.test_accuracy", as_in_validation)
    found = _ended(storage, searched, [0.8, 0.1, None, 0.2, 0.6, 0.3], tmp_path)()
    assert (found.winner.trial, found.winner.diverged) == (2, 1)
    assert found.winner.mean == pytest.approx(1.4 / 3)
    assert found.trial == 0
    assert found.test is not None
    assert found.test.mean == pytest.approx(0.7)
    assert found.test.seeds == 2
    assert found.baseline is not None
    assert found.baseline.mean == pytest.approx(0.2)
    assert found.baseline.seeds == 3
    assert found.difference is None, "of the survivors alone, it would be too good"
    shown = describe_confirmation(found)
    assert "test accuracy 70.00% ± 14.14% (2 of 3 seeds; 1 diverged)" in shown
    assert "configuration: test accuracy 20.00% ± 10.00%\n" in shown + "\n"
    assert "confidence interval" not in shown


def test_without_a_lost_seed_the_difference_has_an_interval(
    storage: OwnedStorage, searched: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.6, 0.7, 0.2, 0.1])
    monkeypatch.setattr("search.confirm.test_accuracy", lambda *_: next(accuracies))
    found = _ended(storage, searched, [0.5, 0.4, 0.5, 0.4], tmp_path)()
    assert found.difference is not None
    mean, low, high = found.difference
    assert mean == pytest.approx(0.5)
    assert low < mean < high
    assert "difference +50.00 points, 95% confidence interval" in describe_confirmation(found)


@pytest.mark.parametrize(("second", "is_noise"), [([0.49, 0.53], True), ([0.1, 0.11], False)])
def test_a_winner_within_the_noise_of_the_second_is_said_to_be(
    storage: OwnedStorage,
    searched: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: list[float],
    is_noise: bool,
) -> None:
    monkeypatch.setattr("search.confirm.test_accuracy", lambda *_: 0.45)
    first = [0.52, 0.53]
    values = [value for seed in zip(first, second, strict=True) for value in seed]
    found = _ended(storage, searched, [*values], tmp_path)()
    assert found.lead is not None
    assert found.lead.trial == 0
    assert found.lead.difference == _difference(first, second)
    assert confirmation_of(searched.opened) == found, "it is kept"
    noise = ", within the noise of trial 0"
    assert found.headline.endswith(f"over 2 seeds{noise if is_noise else ''}")
    lines = describe_confirmation(found).splitlines()
    place = lines.index(f"confirmed: trial 2{noise if is_noise else ''}")
    gained = 100 * (0.525 - sum(second) / 2)
    assert lines[place + 1].startswith(
        f"  above trial 0 by {gained:+.2f} points, 95% confidence interval "
    )


def test_another_trial_of_the_notebook_s_configuration_can_stand_for_it(
    storage: OwnedStorage, searched: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched.opened.study.add_trial(
        optuna.trial.create_trial(
            value=0.49, params={"learning_rate": 1e-3}, distributions={"learning_rate": RATES}
        )
    )
    retrainings = plan(searched.opened, top=2, seeds=2)
    assert [item.trial for item in retrainings] == [2, 5, 2, 5], "trial 0 is trial 5's point"
    accuracies = iter([0.6, 0.7, 0.2, 0.1])
    monkeypatch.setattr("search.confirm.test_accuracy", lambda *_: next(accuracies))
    found = _ended(storage, searched, [0.5, 0.4, 0.5, 0.4], tmp_path, top=2)()
    assert found.baseline is not None
    assert found.baseline.mean == pytest.approx(0.15)
    assert found.difference is not None


def test_an_answer_that_was_given_is_kept(
    storage: OwnedStorage, searched: Prepared, tmp_path: Path
) -> None:
    ask = _ended(storage, searched, [0.6, 0.3, 0.5, None], tmp_path)
    found = ask()
    assert found.winner.trial == 2
    assert found.baseline is not None
    assert (found.baseline.seeds, found.difference) == (1, None)
    searched_too = findings(searched.opened, None, utc_now())
    assert searched_too.confirmation == found
    assert f"hpsearch confirm quickstart</code> has trained them again; {found.headline}" in (
        report_page(searched_too)
    )
    shown = describe_confirmation(found)
    assert f"test accuracy {found.baseline.mean:.2%} (1 of 2 seeds; 1 diverged)" in shown
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert ask() == found


def test_a_seed_whose_weights_are_damaged_is_left_out_on_the_test_images(
    storage: OwnedStorage,
    searched: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("search.confirm.test_accuracy", lambda *_: 0.45)
    ask = _ended(storage, searched, [0.6, 0.3, 0.5, 0.4, 0.4, None], tmp_path)
    damaged = tmp_path / weights_name(2)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    caplog.clear()
    found = ask()
    assert found.winner.trial == 2
    assert found.test is not None
    assert (found.test.seeds, found.test.lost) == (2, 1)
    shown = describe_confirmation(found)
    assert "(2 of 3 seeds; the weights of 1 are lost)\n" in shown
    assert "(2 of 3 seeds; 1 diverged)" in shown
    assert found.difference is None
    (warning,) = caplog.messages
    assert warning.startswith(f"{damaged}: a damaged checkpoint")


def test_without_a_survivor_there_is_no_winner(
    storage: OwnedStorage, searched: Prepared, tmp_path: Path
) -> None:
    ask = _ended(storage, searched, [None, None], tmp_path)
    with pytest.raises(UserError, match="every retraining diverged"):
        ask()


def test_export_names_the_confirmed_trial_and_says_if_the_search_has_a_better_one_by_now(
    storage: OwnedStorage,
    searched: Prepared,
    data_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("search.confirm.test_accuracy", lambda *_: 0.45)
    monkeypatch.setattr("search.export.accuracy", lambda *_: 0.5)
    confirming = prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=1))
    directory = confirming.opened.directory(data_cache) / "checkpoints"
    _ended(storage, searched, [0.5, 0.4], directory)()

    def export() -> str:
        caplog.clear()
        output = tmp_path / "best"
        [written] = export_study(open_study("quickstart", storage), output, data_cache)
        return describe(written)

    confirmed = "confirmed: trial 2; of its retrainings the best, trial 0 of study "
    assert export().startswith(f"{confirmed}'quickstart-confirm', validation accuracy 50.00%")
    assert caplog.messages == []
    searched.opened.study.add_trial(
        optuna.trial.create_trial(
            value=0.6, params={"learning_rate": 0.04}, distributions={"learning_rate": RATES}
        )
    )
    assert export().startswith(confirmed)
    assert caplog.messages == [
        "trial 5 ranks first in the search by now, but is not among the confirmed ones; to "
        "include it: hpsearch confirm quickstart"
    ]


def test_of_a_damaged_winner_the_next_best_retraining_is_exported(
    storage: OwnedStorage,
    searched: Prepared,
    data_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("search.confirm.test_accuracy", lambda *_: 0.45)
    monkeypatch.setattr("search.export.accuracy", lambda *_: 0.5)
    confirming = prepare_confirmation(storage, searched, plan(searched.opened, top=1, seeds=2))
    directory = confirming.opened.directory(data_cache) / "checkpoints"
    # The notebook's, second and fourth, is better than the third, but has not won.
    _ended(storage, searched, [0.9, 0.6, 0.5, 0.7], directory)()
    (directory / weights_name(0)).write_bytes(b"")
    [exported] = export_study(open_study("quickstart", storage), tmp_path / "best", data_cache)
    assert (exported.best.number, exported.instead_of) == (2, 0)
    assert "of its retrainings the best whose weights are not lost, trial 2 of" in describe(
        exported
    )
    assert f"{directory / weights_name(0)}: a damaged checkpoint" in caplog.text


def test_the_interval_of_a_difference_is_welchs() -> None:
    # By hand: means 0.5 and 0.3, variances 1e-4 and 4e-4 of 3 each, so a standard error of
    # sqrt(5e-4 / 3) and 25 / 8.5 = 2.941 degrees of freedom, whose t at 97.5% is 3.2146.
    difference = _difference([0.49, 0.5, 0.51], [0.28, 0.3, 0.32])
    assert difference == pytest.approx((0.2, 0.2 - 0.0415, 0.2 + 0.0415), abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    assert _difference([0.5], [0.3]) is None
