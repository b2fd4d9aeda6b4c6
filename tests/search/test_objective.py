from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import Trial

from data.dataset import load_dataset
from data.errors import UserError
from data.split import split_for_training
from model.trial import Diverged, EpochResult, TrialContext
from search.broken import WorkerBroken
from search.objective import End, Objective, Outcome, Run, load_objective, run_trial
from search.reports import Reports
from search.stop import StopRequest
from search.tensorboard import TrialLog
from studies.checkpoints import Checkpoint, CheckpointDirectory, Resumable
from studies.patience import Patience
from studies.results import BEST_EPOCH, FALLBACKS, IMAGES_PER_SECOND
from studies.stores import Folder

EPOCHS = 4
ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.fixture
def context(data_cache: Path) -> TrialContext:
    data = split_for_training(load_dataset("cifar10-mini", data_cache), 0.1, 0)
    return TrialContext(data, torch.device("cpu"), EPOCHS, seed=0, precision="fp32")


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(Folder(tmp_path))


def epochs(*accuracies: float) -> Objective:
    """An objective whose weights say which epoch they are of."""

    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        for epoch, accuracy in enumerate(accuracies, start=1):
            weights = {"epoch": torch.tensor(epoch)}
            yield EpochResult(epoch, accuracy, 1.0, 1000.0, weights)

    return train


def raising(error: Exception) -> Objective:
    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        yield EpochResult(1, 0.5, 1.0, 1000.0, {})
        raise error

    return train


def run_on(
    trial: Trial,
    objective: Objective,
    context: TrialContext,
    checkpoints: CheckpointDirectory,
    stop: StopRequest | None = None,
    may_prune: bool = True,
) -> Outcome:
    stop = stop or StopRequest(grace_seconds=3600)

    def write(accuracies: Mapping[int, float], attributes: Mapping[str, Any], _: object) -> None:
        for epoch, accuracy in accuracies.items():
            trial.storage.set_trial_intermediate_value(trial._trial_id, epoch, accuracy)
        for key, value in attributes.items():
            trial.storage.set_trial_user_attr(trial._trial_id, key, value)

    patience = Patience(0)
    reports = Reports(trial, write, patience, may_wait=lambda: True, holds=lambda: True)
    run = Run(
        number=trial.number,
        parameters={},
        objective=objective,
        context=context,
        checkpoints=checkpoints,
        stop=stop,
        reports=reports,
        is_ours=lambda: True,
        patience=patience,
        log=TrialLog(None, trial.number, {}, is_resnet=False),
        may_prune=may_prune,
    )
    return run_trial(run)


def run(
    objective: Objective,
    context: TrialContext,
    checkpoints: CheckpointDirectory,
    stop: StopRequest | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> tuple[Trial, Outcome]:
    study = optuna.create_study(direction="maximize", pruner=pruner or optuna.pruners.NopPruner())
    trial = study.ask()
    return trial, run_on(trial, objective, context, checkpoints, stop)


def test_every_epoch_is_reported_and_the_best_kept(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    trial, outcome = run(epochs(0.1, 0.5, 0.4, 0.5), context, checkpoints)
    assert outcome == Outcome(End.COMPLETE, (0.1, 0.5, 0.4, 0.5))
    frozen = trial.study.trials[0]
    assert frozen.intermediate_values == {1: 0.1, 2: 0.5, 3: 0.4, 4: 0.5}
    assert frozen.user_attrs == {BEST_EPOCH: 2, IMAGES_PER_SECOND: 1000}
    checkpoint = checkpoints.load(0)
    assert (checkpoint.epoch, checkpoint.validation_accuracy) == (2, 0.5)
    assert int(checkpoint.weights["epoch"]) == 2


def test_what_was_done_in_another_way_than_asked_for_is_recorded(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    def train(parameters: Mapping[str, Any], given: TrialContext) -> Iterator[EpochResult]:
        for result in epochs(0.1, 0.5, 0.4, 0.5)(parameters, given):
            fallbacks = ("in parts", "not compiled") if result.epoch > 1 else ()
            yield replace(result, fallbacks=fallbacks)

    trial, _ = run(train, context, checkpoints)
    assert trial.study.trials[0].user_attrs[FALLBACKS] == "in parts, not compiled"


def test_a_pruned_trial_ends_where_the_pruner_says(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    pruner = optuna.pruners.ThresholdPruner(lower=0.3)
    _, outcome = run(epochs(0.5, 0.2, 0.9, 0.9), context, checkpoints, pruner=pruner)
    assert outcome == Outcome(End.PRUNED, (0.5, 0.2))


def test_a_baseline_is_complete_whatever_the_pruner_says(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(0.3))
    objective = epochs(0.5, 0.2, 0.1, 0.1)
    outcome = run_on(study.ask(), objective, context, checkpoints, may_prune=False)
    assert outcome.end is End.COMPLETE


def test_a_trial_that_has_had_its_last_epoch_is_complete_not_pruned(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    pruner = optuna.pruners.ThresholdPruner(lower=0.3)
    _, outcome = run(epochs(0.5, 0.5, 0.5, 0.1), context, checkpoints, pruner=pruner)
    assert outcome.end is End.COMPLETE


def test_divergence_is_an_outcome_of_its_own_with_a_reason(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    _, outcome = run(raising(Diverged("the loss was nan")), context, checkpoints)
    assert outcome == Outcome(End.DIVERGED, (0.5,), "the loss was nan")


def test_an_error_fails_the_trial_with_its_message(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    _, outcome = run(raising(RuntimeError("no such kernel")), context, checkpoints)
    assert outcome == Outcome(End.FAILED, (0.5,), "RuntimeError: no such kernel")


def test_an_error_of_the_process_leaves_the_trial_as_it_was_after_its_last_epoch(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    broken = RuntimeError(f"{ILLEGAL}\nCUDA kernel errors might be asynchronously reported")

    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        if context.resume:
            raise broken
        for epoch in (1, 2):
            yield EpochResult(epoch, 0.1 * epoch, 1.0, 1000.0, {}, {"epoch": epoch})
        raise broken

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    trial = study.ask()
    with pytest.raises(WorkerBroken, match=f"^RuntimeError: {ILLEGAL}$") as caught:
        run_on(trial, train, context, checkpoints)
    assert caught.value.has_trained
    with pytest.raises(WorkerBroken) as caught:  # It does not begin anew.
        run_on(Trial(study, trial._trial_id), train, context, checkpoints)
    assert not caught.value.has_trained
    assert study.trials[0].intermediate_values == {1: 0.1, 2: 0.2}
    left = checkpoints.load_state(trial.number)
    assert left is not None
    assert left.accuracies == (0.1, 0.2)


def test_an_objective_that_ends_early_fails_the_trial(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    _, outcome = run(epochs(0.1, 0.2), context, checkpoints)
    assert outcome.end is End.FAILED
    assert outcome.reason == "the objective ended after 2 of 4 epochs"


def test_a_storage_error_is_not_taken_for_a_failed_trial(
    context: TrialContext, checkpoints: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise optuna.exceptions.StorageInternalError("gone")

    monkeypatch.setattr(optuna.storages.InMemoryStorage, "set_trial_intermediate_value", lost)
    with pytest.raises(optuna.exceptions.StorageInternalError):
        run(epochs(0.1, 0.2, 0.3, 0.4), context, checkpoints)


def test_a_request_to_stop_ends_the_trial_after_its_epoch(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    stop = StopRequest(grace_seconds=3600)

    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        yield EpochResult(1, 0.5, 1.0, 1000.0, {})
        stop._handle(2, None)
        yield EpochResult(2, 0.6, 1.0, 1000.0, {})
        pytest.fail("went on")

    _, outcome = run(train, context, checkpoints, stop)
    assert outcome == Outcome(End.INTERRUPTED, (0.5, 0.6))


def test_a_trial_that_is_run_again_reports_its_epochs_anew(
    context: TrialContext, checkpoints: CheckpointDirectory, recwarn: pytest.WarningsRecorder
) -> None:
    trial, _ = run(epochs(0.4, 0.3), context, checkpoints)
    trial = Trial(trial.study, trial._trial_id)
    outcome = run_on(trial, epochs(0.1, 0.2, 0.3, 0.2), context, checkpoints)
    assert outcome.end is End.COMPLETE
    assert trial.study.trials[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.2}
    assert checkpoints.load(0).validation_accuracy == 0.3
    assert len(recwarn) == 0


def test_a_trial_that_is_run_again_is_judged_from_where_it_was(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    class Counting(optuna.pruners.BasePruner):
        """Prunes whatever it is asked about, but for the first two times."""

        asked = 0

        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            self.asked += 1
            return self.asked > 2

    trial, _ = run(epochs(0.4, 0.3), context, checkpoints, pruner=Counting())
    trial = Trial(trial.study, trial._trial_id)
    outcome = run_on(trial, epochs(0.1, 0.2, 0.3, 0.2), context, checkpoints)
    assert outcome == Outcome(End.PRUNED, (0.1, 0.2))


def resumable(*accuracies: float, stop_after: tuple[StopRequest, int] | None = None) -> Objective:
    """An objective that goes on after its state's epoch, and asks to stop within an epoch."""

    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        before = context.resume["epoch"] if context.resume else 0
        for epoch, accuracy in enumerate(accuracies, start=1):
            if epoch > before:
                weights, state = {"epoch": torch.tensor(epoch)}, {"epoch": epoch}
                if stop_after and epoch == stop_after[1]:
                    stop_after[0]._handle(2, None)
                yield EpochResult(epoch, accuracy, 1.0, 1000.0, weights, state)

    return train


def test_an_interrupted_trial_goes_on_after_its_last_epoch(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    stop = StopRequest(grace_seconds=3600)
    trial, outcome = run(resumable(0.1, 0.3, stop_after=(stop, 2)), context, checkpoints, stop)
    assert outcome == Outcome(End.INTERRUPTED, (0.1, 0.3))
    trial = Trial(trial.study, trial._trial_id)
    again = resumable(9.0, 9.0, 0.2, 0.25)
    outcome = run_on(trial, again, context, checkpoints)
    assert outcome == Outcome(End.COMPLETE, (0.1, 0.3, 0.2, 0.25))
    assert trial.study.trials[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.25}
    assert int(checkpoints.load(0).weights["epoch"]) == 2, "the best is of before"


def test_so_does_one_whose_state_is_not_listed_yet(
    context: TrialContext, checkpoints: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a list of names may be a minute old."""
    stop = StopRequest(grace_seconds=3600)
    trial, _ = run(resumable(0.1, 0.3, stop_after=(stop, 2)), context, checkpoints, stop)
    monkeypatch.setattr(Folder, "names", lambda _: [])
    trial = Trial(trial.study, trial._trial_id)
    outcome = run_on(trial, resumable(9.0, 9.0, 0.2, 0.25), context, checkpoints)
    assert outcome == Outcome(End.COMPLETE, (0.1, 0.3, 0.2, 0.25))


def test_an_epoch_that_a_dead_worker_could_not_report_is_reported(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    checkpoints.save_state(0, Resumable((0.1, 0.3), {"epoch": 2}))
    trial, outcome = run(resumable(9.0, 9.0, 0.2, 0.25), context, checkpoints)
    assert outcome == Outcome(End.COMPLETE, (0.1, 0.3, 0.2, 0.25))
    assert trial.study.trials[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.25}


def test_a_state_that_the_objective_cannot_take_is_begun_anew(
    context: TrialContext, checkpoints: CheckpointDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save_state(0, Resumable((0.9, 0.9), {"of": "another version"}))
    trial, outcome = run(resumable(0.1, 0.3, 0.2, 0.25), context, checkpoints)
    assert outcome == Outcome(End.COMPLETE, (0.1, 0.3, 0.2, 0.25))
    assert trial.study.trials[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.25}
    assert checkpoints.load(0).epoch == 2
    assert "trial 0 begins anew" in caplog.text


def test_of_a_trial_that_is_begun_anew_only_the_new_epochs_are_reported(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        if context.resume:
            raise KeyError("of another version")
        yield EpochResult(1, 0.1, 1.0, 1000.0, {})
        raise Diverged("the loss was nan")

    checkpoints.save_state(0, Resumable((0.9, 0.9, 0.9), {"epoch": 3}))
    trial, outcome = run(train, context, checkpoints)
    assert outcome == Outcome(End.DIVERGED, (0.1,), "the loss was nan")
    assert trial.study.trials[0].intermediate_values == {1: 0.1}


def test_an_objective_that_ignores_its_state_fails_the_trial(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    checkpoints.save_state(0, Resumable((0.1, 0.2), {"epoch": 2}))
    _, outcome = run(epochs(0.1, 0.2, 0.3, 0.4), context, checkpoints)
    assert outcome.end is End.FAILED
    assert outcome.reason == "the objective yielded epoch 1, not 3"


def test_weights_that_the_state_does_not_know_of_are_replaced(
    context: TrialContext, checkpoints: CheckpointDirectory
) -> None:
    """The last worker died between the two files, and a GPU may not give the same again."""
    checkpoints.save(0, Checkpoint({"epoch": torch.tensor(2)}, 2, 0.9))
    checkpoints.save_state(0, Resumable((0.1,), {"epoch": 1}))
    run(resumable(0.1, 0.3, 0.2, 0.25), context, checkpoints)
    assert (checkpoints.load(0).epoch, checkpoints.load(0).validation_accuracy) == (2, 0.3)


@pytest.mark.parametrize("state", [{"epoch": print}, {"epoch": lambda: 1}])
def test_a_state_that_cannot_be_kept_is_warned_of_and_costs_only_the_way_back(
    context: TrialContext,
    checkpoints: CheckpointDirectory,
    caplog: pytest.LogCaptureFixture,
    state: dict[str, Any],
) -> None:
    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        for epoch in range(1, context.epochs + 1):
            yield EpochResult(epoch, 0.1 * epoch, 1.0, 1000.0, {}, state)

    _, outcome = run(train, context, checkpoints)
    assert outcome.end is End.COMPLETE
    assert checkpoints.load_state(0) is None
    assert "its state cannot be written" in caplog.text or "begins anew" in caplog.text


def test_a_full_disk_does_not_end_the_trial(
    context: TrialContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    file = CheckpointDirectory(Folder(tmp_path / "file"))
    _, outcome = run(resumable(0.1, 0.2, 0.3, 0.4), context, file)
    assert outcome.end is End.COMPLETE
    assert "the checkpoint" in caplog.text
    assert "its state cannot be written" in caplog.text


def test_an_objective_is_found_by_its_name() -> None:
    from model.train import train

    assert load_objective("model.train:train") is train


@pytest.mark.parametrize("name", ["no.such:thing", "model.train:nothing", "model.train:NOTEBOOK"])
def test_an_objective_that_cannot_be_had_is_named(name: str) -> None:
    with pytest.raises(UserError, match=name):
        load_objective(name)
