import itertools
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard._note import get_note_from_system_attrs

from data.dataset import load_dataset
from data.files import always
from data.split import split_for_training
from model.resnet import ResNet
from model.train import train
from model.trial import Diverged, EpochResult, TrialContext
from search.broken import WorkerBroken
from search.lost import LostTrials
from search.objective import Outcome
from search.prepare import first_trials
from search.sampler import CurveGPSampler
from search.stop import StopRequest
from search.warm import EARLIER_TRIALS
from search.worker import Worker, beating_heart
from studies.checkpoints import (
    Checkpoint,
    CheckpointDirectory,
    open_checkpoints,
    weights_name,
)
from studies.config import StudyConfig, load_study_file
from studies.database import DatabaseStorage
from studies.ownership import OwnedStorage
from studies.patience import Patience, ProxyFailure, StorageLost
from studies.results import EPOCHS_BEFORE, ERROR, LOSSES, OWNER
from studies.storage import open_database, open_storage, storage_failure
from studies.stores import Folder
from studies.study import create_or_continue
from studies.timeline import runs_of
from tests.conftest import forget_heartbeats
from tests.system.processes import wait_for


@pytest.fixture
def storage(tmp_path: Path) -> OwnedStorage:
    return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


def poor(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
    """An objective that never gets anywhere."""
    for epoch in range(1, context.epochs + 1):
        yield EpochResult(epoch, 0.1, 1.0, 1000.0, {"weight": torch.tensor(epoch)})


def make_worker(
    storage: OwnedStorage,
    tmp_path: Path,
    data_cache: Path,
    attributes: Mapping[str, Any],
    **settings: Any,
) -> Worker:
    config = load_study_file("quickstart", {"budget.trials": 7, **settings})
    dataset = load_dataset("cifar10-mini", data_cache)
    first = first_trials(config, "quickstart")
    opened, _ = create_or_continue(storage, config, dataset.digest, first, attributes)
    return Worker(
        opened=opened,
        storage=storage,
        objective=poor,
        data=split_for_training(dataset, 0.1, 0),
        device=torch.device("cpu"),
        checkpoints=open_checkpoints(opened, tmp_path, None),
        stop=StopRequest(grace_seconds=3600),
        patience=Patience(0),
        lost_trials=LostTrials(opened, storage),
        deadline=None,
    )


def test_the_notebook_s_configuration_and_the_starts_are_never_pruned(
    storage: OwnedStorage, tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(storage, tmp_path, data_cache, {})
    asked: list[str] = []

    def counted(config: StudyConfig, origin: str) -> list[dict[str, Any]]:
        asked.append(origin)
        return first_trials(config, origin)

    monkeypatch.setattr("search.worker.first_trials", counted)
    first = len(first_trials(worker.opened.config, "quickstart"))
    assert first == 2
    better = optuna.create_trial(
        value=0.9,
        params={"pooling": "max"},
        distributions={"pooling": CategoricalDistribution(["max", "average"])},
        intermediate_values=dict.fromkeys(range(1, 11), 0.9),
    )
    worker.opened.study.add_trials([better] * 4)
    worker.work()
    states = [trial.state for trial in worker.opened.study.trials]
    assert states == [*[TrialState.COMPLETE] * 6, TrialState.PRUNED]
    assert len(asked) == 3, "once for each of the worker's"
    # What the dashboard shows of it.
    notes = [
        get_note_from_system_attrs(storage.get_study_system_attrs(1), number + 1)["body"]
        for number in range(7)
    ]
    assert notes[0].startswith("The notebook's configuration")
    assert notes[1].startswith("Known to be good")
    assert "**Complete** after" in notes[1]
    assert notes[6].startswith("Suggested by the gp sampler.\n\n**Pruned** after")
    figures = get_plotly_graph_objects(storage.get_study_system_attrs(1))
    assert figures.keys() == {"best-so-far", "learning-curves", "workers"}
    assert json.loads(figures["best-so-far"])["data"][0]["y"] == [*[0.9] * 4, 0.1, 0.1]


@pytest.fixture
def interrupted(storage: OwnedStorage, tmp_path: Path, data_cache: Path) -> Worker:
    """A worker whose first trial was handed back after its third epoch; it may go on."""
    stop = StopRequest(grace_seconds=3600)

    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        before = context.resume["epoch"] if context.resume else 0
        for epoch in range(before + 1, context.epochs + 1):
            if epoch == 3 and not before:
                stop._handle(2, None)
            yield EpochResult(epoch, 0.1, 1.0, 1000.0, {}, {"epoch": epoch})

    worker = replace(make_worker(storage, tmp_path, data_cache, {}), objective=train, stop=stop)
    worker.work()
    return replace(worker, stop=StopRequest(grace_seconds=3600))


def test_what_a_trial_needs_to_go_on_is_there_until_it_has_ended(interrupted: Worker) -> None:
    store = interrupted.checkpoints.store
    newest_and_before = {"trial-00000-epoch-00002.state", "trial-00000-epoch-00003.state"}
    assert set(store.names()) == {"trial-00000.safetensors", *newest_and_before}
    interrupted.work()
    assert {trial.state for trial in interrupted.opened.study.trials} == {TrialState.COMPLETE}
    assert all(name.endswith(".safetensors") for name in store.names())


def test_a_state_that_can_never_be_read_costs_a_trial_two_epochs_and_no_worker(
    interrupted: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a bad block of the disk."""
    assert isinstance(interrupted.checkpoints.store, Folder)
    newest = interrupted.checkpoints.store.path / "trial-00000-epoch-00003.state"
    newest.unlink()
    newest.mkdir()
    with caplog.at_level("INFO"):
        replace(interrupted, patience=Patience(0)).work()
    assert "its state after epoch 3 cannot be used" in caplog.text
    assert "trial 0: goes on after epoch 2" in caplog.messages
    assert interrupted.opened.study.trials[0].state == TrialState.COMPLETE


def test_a_trial_whose_state_is_lost_shows_no_epoch_of_the_run_before(
    interrupted: Worker, storage: OwnedStorage
) -> None:
    def diverging(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        assert context.resume is None
        yield EpochResult(1, 0.05, 1.0, 1000.0, {})
        raise Diverged("the loss was nan")

    store = interrupted.checkpoints.store
    for name in store.names():
        store.remove(name)
    budget = {"budget": interrupted.opened.config.budget.model_copy(update={"trials": 1})}
    config = interrupted.opened.config.model_copy(update=budget)
    opened = replace(interrupted.opened, config=config)
    replace(interrupted, opened=opened, objective=diverging).work()
    found = opened.records[0]
    assert (found.state, found.accuracies, found.value) == ("diverged", (0.05,), 0.05)
    assert [(run.epochs_before, run.epochs) for run in runs_of(found)] == [(0, 3), (0, 1)]
    attributes = storage.get_study_system_attrs(1)
    note = get_note_from_system_attrs(attributes, 1)["body"]
    assert "**Diverged** after 1 of 10 epochs" in note
    assert "best validation accuracy **5.00%**, in epoch 1" in note


@dataclass(frozen=True)
class Stuck(Folder):
    """One file is not written until it may go on."""

    name: str
    goes_on: threading.Event

    def write(
        self, name: str, content: bytes | memoryview, may_appear: Callable[[], bool] = always
    ) -> bool:
        assert name != self.name or self.goes_on.wait(60)
        return super().write(name, content, may_appear)


def test_a_trial_is_handed_back_while_a_file_of_it_is_stuck_which_does_not_appear_later(
    storage: OwnedStorage,
    tmp_path: Path,
    data_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("search.saver.LAST_SECONDS", 0.5)
    stop = StopRequest(grace_seconds=3600)

    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        before = context.resume["epoch"] if context.resume else 0
        for epoch in range(before + 1, context.epochs + 1):
            if epoch == 3 and not before:
                stop._handle(15, None)
                stop._handle(15, None)
            yield EpochResult(epoch, 0.1, 1.0, 1000.0, {}, {"epoch": epoch})

    worker = replace(make_worker(storage, tmp_path, data_cache, {}), objective=train, stop=stop)
    assert isinstance(worker.checkpoints.store, Folder)
    store = Stuck(worker.checkpoints.store.path, "trial-00000-epoch-00002.state", threading.Event())
    released = threading.Timer(30, store.goes_on.set)
    released.start()
    replace(worker, checkpoints=CheckpointDirectory(store)).work()
    assert not store.goes_on.is_set()
    trial = worker.opened.study.trials[0]
    assert (trial.state, len(trial.intermediate_values)) == (TrialState.WAITING, 2)

    released.cancel()
    store.goes_on.set()
    for thread in threading.enumerate():
        if thread.name == "saver":
            assert thread.daemon, "the process does not wait for it"
            thread.join()
    assert sorted(store.names()) == ["trial-00000-epoch-00001.state", "trial-00000.safetensors"]
    with caplog.at_level("INFO"):
        replace(worker, stop=StopRequest(grace_seconds=3600)).work()
    assert "trial 0: goes on after epoch 1" in caplog.messages
    assert worker.opened.study.trials[0].state == TrialState.COMPLETE


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE trial_values SET value = 'high'",
        "UPDATE trial_intermediate_values SET intermediate_value = 'high'",
    ],
)
def test_a_text_for_a_number_of_an_ended_trial_stops_no_worker(
    harm: str, tmp_path: Path, data_cache: Path
) -> None:
    """SQLite takes it."""
    database = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    began: list[int] = []

    def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        began.append(1)
        if len(began) == 4:
            with database.engine.begin() as connection:
                connection.exec_driver_sql(f"{harm} WHERE trial_id = 1")
        return poor(parameters, context)

    worker = make_worker(database, tmp_path, data_cache, {})
    replace(worker, objective=train).work()
    states = [trial.state for trial in worker.opened.study.trials]
    assert states[1:] == [TrialState.COMPLETE] * 6


def breaking(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
    """An objective on a GPU that this process can use no more."""
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
    yield


def test_a_worker_that_is_broken_gives_its_trial_back_with_all_that_it_has(
    interrupted: Worker,
) -> None:
    names = interrupted.checkpoints.store.names()
    with pytest.raises(WorkerBroken) as caught:
        replace(interrupted, objective=breaking).work()
    assert caught.value.exit_code == 71
    trial = interrupted.opened.study.trials[0]
    assert (trial.state, len(trial.intermediate_values)) == (TrialState.WAITING, 3)
    assert (trial.user_attrs[LOSSES], trial.user_attrs[OWNER]) == (1, None)
    assert sorted(interrupted.checkpoints.store.names()) == sorted(names)
    interrupted.work()
    assert {trial.state for trial in interrupted.opened.study.trials} == {TrialState.COMPLETE}
    (lost,) = interrupted.opened.records[0].earlier_runs[1:]
    assert (lost.epochs_before, lost.epochs, lost.lost) == (3, 3, True)


def test_a_trial_that_begins_anew_on_a_broken_worker_keeps_its_epochs(interrupted: Worker) -> None:
    """The first error may have been of the broken device as well, in other words."""

    def train(_: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        if context.resume:
            raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")
        return breaking(_, context)

    with pytest.raises(WorkerBroken):
        replace(interrupted, objective=train).work()
    trial = interrupted.opened.study.trials[0]
    assert (trial.state, len(trial.intermediate_values)) == (TrialState.WAITING, 3)
    assert trial.user_attrs[EPOCHS_BEFORE] == 3
    assert interrupted.checkpoints.load_state(0) is not None


def test_a_trial_that_breaks_each_of_its_workers_has_failed_and_the_study_goes_on(
    interrupted: Worker,
) -> None:
    def breaks_on_the_first(
        parameters: Mapping[str, Any], context: TrialContext
    ) -> Iterator[EpochResult]:
        is_first = interrupted.opened.study.trials[0].state == TrialState.RUNNING
        return breaking(parameters, context) if is_first else poor(parameters, context)

    worker = replace(interrupted, objective=breaks_on_the_first)
    for _ in range(1 + worker.opened.config.trial.max_retries):
        with pytest.raises(WorkerBroken):
            worker.work()
    worker.work()
    first, *others = worker.opened.study.trials
    assert first.state == TrialState.FAIL
    assert first.user_attrs[ERROR] == (
        "its worker was lost 4 times without a new epoch in between; last: RuntimeError: "
        "CUDA error: an illegal memory access was encountered"
    )
    assert [trial.state for trial in others] == [TrialState.COMPLETE] * 7


def test_a_worker_that_breaks_after_it_has_trained_says_so_whichever_trial_it_was(
    storage: OwnedStorage, tmp_path: Path, data_cache: Path
) -> None:
    objectives = iter([poor, breaking])
    worker = make_worker(storage, tmp_path, data_cache, {})
    with pytest.raises(WorkerBroken) as caught:
        replace(worker, objective=lambda *given: next(objectives)(*given)).work()
    assert caught.value.exit_code == 70
    states = [trial.state for trial in worker.opened.study.trials]
    assert states[:2] == [TrialState.COMPLETE, TrialState.WAITING]


def put_out_of_reach(worker: Worker) -> Callable[[], None]:
    """Let the folder of the checkpoints be there, but not answer.

    Returns:
        What puts it back.
    """
    assert isinstance(worker.checkpoints.store, Folder)
    folder = worker.checkpoints.store.path
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.name)

    def put_back() -> None:
        folder.unlink()
        elsewhere.rename(folder)

    return put_back


def test_a_trial_that_is_to_go_on_waits_for_its_checkpoints(
    interrupted: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    timer = threading.Timer(0.7, put_out_of_reach(interrupted))
    timer.start()
    with caplog.at_level("INFO"):
        replace(interrupted, patience=Patience(60)).work()
    assert "Too many levels of symbolic links); trying again for 60 s" in caplog.text
    assert "trial 0: goes on after epoch 3" in caplog.messages
    assert interrupted.opened.study.trials[0].state == TrialState.COMPLETE


def test_one_that_has_waited_for_too_long_is_handed_back_as_it_was(interrupted: Worker) -> None:
    names = interrupted.checkpoints.store.names()
    put_back = put_out_of_reach(interrupted)
    for patience, stop in (
        (Patience(0), StopRequest(grace_seconds=3600)),
        (Patience(60), interrupted.stop),
    ):
        if patience.seconds:
            threading.Timer(0.7, stop._handle, (2, None)).start()
        with pytest.raises(StorageLost, match="Too many levels of symbolic links"):
            replace(interrupted, patience=patience, stop=stop).work()
        trial = interrupted.opened.study.trials[0]
        assert (trial.state, len(trial.intermediate_values)) == (TrialState.WAITING, 3)
    put_back()
    assert sorted(interrupted.checkpoints.store.names()) == sorted(names)


def test_the_sampler_weighs_the_trials_of_the_study_that_this_one_started_from(
    storage: OwnedStorage, tmp_path: Path, data_cache: Path
) -> None:
    point = first_trials(load_study_file("quickstart"), "quickstart")[0]
    stored = {"parameters": {**point, "width": 8}, "accuracies": [0.2, 0.3], "value": 0.3}
    worker = make_worker(storage, tmp_path, data_cache, {EARLIER_TRIALS: [stored]})
    worker.work()
    sampler = worker.opened.study.sampler
    assert isinstance(sampler, CurveGPSampler)
    (trial,) = sampler._earlier
    assert trial.value == 0.3
    assert trial.params["learning_rate"] == 1e-3


def test_a_trial_asks_the_database_as_much_in_a_long_study_as_in_a_new_one(
    tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.worker.HEARTBEAT_SECONDS", 0.02)
    this = threading.current_thread()
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    settings = {"sampler.name": "random", "pruner.name": "median", "budget.trials": 25}
    worker = make_worker(storage, tmp_path, data_cache, {}, **settings)
    statements: list[str] = []
    before_trial: list[int] = []
    epochs: set[int] = set()

    @sqlalchemy.event.listens_for(storage.engine, "before_cursor_execute")
    def counted(_: object, __: object, statement: str, *___: object) -> None:
        # The heart has a thread of its own, and beats when it likes.
        if threading.current_thread() is this and not statement.startswith("BEGIN"):
            statements.append(statement)

    def counting(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        before_trial.append(len(statements))
        for result in poor(parameters, context):
            before = len(statements)
            yield result
            epochs.add(len(statements) - before)

    replace(worker, objective=counting).work()
    of_trials = [after - before for before, after in itertools.pairwise(before_trial)]
    assert len(of_trials) == 24
    # Whose it is, the accuracy, the attributes; and at some epochs what the others have reached.
    assert epochs == {3, 4}
    assert max(of_trials) < 60
    assert len(set(of_trials)) == 1


def test_a_running_trial_that_cannot_be_read_stops_no_worker(
    tmp_path: Path,
    data_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its worker is gone, and somebody has written what Optuna does not understand."""
    monkeypatch.setattr("search.lost.SUSPICION_SECONDS", 0.0)
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    worker = make_worker(storage, tmp_path, data_cache, {}, **{"budget.trials": 3})
    assert open_database(storage.url).take(1)
    forget_heartbeats(storage)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_user_attributes SET value_json = '{' WHERE key <> 'owner'"
        )
    worker.work()
    assert storage.open_trials(1)[1] == [], "none waits or runs for ever"
    (broken,) = (found for found in storage.last_ended(1, 0, 9) if found.number == 0)
    assert broken.state == TrialState.FAIL
    assert "the trial of identity 1 has failed: what is stored of it cannot be" in caplog.text
    assert storage.count(1) == 4, "another is there in its place"


def test_a_checkpoint_whose_writing_a_long_pause_interrupts_replaces_none_of_its_new_worker(
    tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    worker = make_worker(storage, tmp_path, data_cache, {}, **{"budget.trials": 1})
    theirs, fsync = open_database(storage.url), os.fsync

    def paused(descriptor: int) -> None:
        fsync(descriptor)
        monkeypatch.undo()
        assert theirs.take_away(1, storage.owner(1), 3, "silence")
        assert theirs.take(1)
        worker.checkpoints.save(0, Checkpoint({"weight": torch.tensor(9)}, 9, 0.9))

    monkeypatch.setattr(os, "fsync", paused)
    stop = StopRequest(grace_seconds=3600)

    def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        stop._handle(2, None)
        return poor(parameters, context)

    replace(worker, objective=train, stop=stop).work()
    assert worker.checkpoints.load(0).epoch == 9
    assert sorted(worker.checkpoints.store.names()) == [weights_name(0)], "nothing is left beside"


def test_a_trial_that_is_another_s_and_cannot_be_read_stops_no_worker(
    tmp_path: Path, data_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    theirs, stop = open_database(storage.url), StopRequest(grace_seconds=3600)

    def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        if theirs.take_away(1, storage.owner(1), 3, "silence"):
            assert theirs.take(1)
            with storage.engine.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE trial_user_attributes SET value_json = '{' WHERE key <> 'owner'"
                )
        else:
            stop._handle(2, None)
        return poor(parameters, context)

    settings = {"sampler.name": "random", "pruner.name": "none"}
    worker = make_worker(storage, tmp_path, data_cache, {}, **settings)
    replace(worker, objective=train, stop=stop).work()
    assert "trial 0: this worker was taken for dead and has it no longer" in caplog.messages
    assert stop.requested, "it has gone on with another"


def harm(storage: DatabaseStorage) -> None:
    """Let the study be one that nobody can read: a trial has no state that there is."""
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET state = 'EVIL' WHERE trial_id = 1")


class HarmfulSampler(optuna.samplers.RandomSampler):
    """One that reads the study, when it is not to be read any more."""

    def __init__(self, storage: DatabaseStorage) -> None:
        super().__init__()
        self._database = storage

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 1:
            harm(self._database)
            study.get_trials()


@pytest.mark.parametrize("reader", ["sampler", "pruner"])
def test_a_trial_is_handed_back_at_once_with_its_files_if_the_study_cannot_be_read(
    reader: str, tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    settings = {"sampler.name": "random", "pruner.name": "predictive"}
    worker = make_worker(storage, tmp_path, data_cache, {}, **settings)
    if reader == "sampler":
        monkeypatch.setattr("search.worker.make_sampler", lambda *_: HarmfulSampler(storage))

    def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        if storage.is_ours(2):
            harm(storage)
        for result in poor(parameters, context):
            yield replace(result, state={"epoch": result.epoch})

    with pytest.raises(LookupError, match="EVIL") as error:
        replace(worker, objective=train).work()
    assert str(storage_failure(error.value)).startswith("the storage cannot be read: LookupError")
    _, trials = storage.open_trials(worker.opened.study._study_id)
    assert [(item.trial_id, item.state) for item in trials] == [(2, TrialState.WAITING)]
    assert (worker.checkpoints.load_state(1) is not None) == (reader == "pruner")
    assert LOSSES not in storage.get_trial(2).user_attrs


def test_while_the_database_is_silent_it_is_not_asked_before_each_file(
    storage: OwnedStorage, tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(storage, tmp_path, data_cache, {})
    assert storage.take(1)
    monkeypatch.setattr(storage, "is_ours", lambda _: False)
    assert not worker._is_ours(1)
    worker.patience.trouble = "connection timeout expired"
    assert worker._is_ours(1), "by its last heartbeat"


class Troubled:
    """A storage, and who looks for lost trials in it: each step is noted, and some are none."""

    def __init__(self, failing: str) -> None:
        self.failing, self.steps = failing, list[str]()

    def record_heartbeat(self, _: int) -> None:
        self._step("beat")

    def take_back(self) -> None:
        self._step("look")

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.failing:
            raise ProxyFailure("no answer", is_transient=True)


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("beat", "a heartbeat could not be recorded (no answer)"),
        ("look", "lost trials could not be looked for (no answer)"),
    ],
)
def test_of_a_beat_and_a_look_for_lost_trials_neither_waits_for_the_other(
    failing: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("search.worker.HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr("search.worker.HEARTBEAT_AGAIN_SECONDS", 0.01)
    troubled: Any = Troubled(failing)
    with caplog.at_level("INFO"), beating_heart(troubled, 1, troubled, Patience(60)):
        wait_for(lambda: len(troubled.steps) >= 4, seconds=5)
    assert troubled.steps[:4] == ["beat", "look"] * 2
    assert caplog.messages == [said], "once, as long as it lasts"


class SlowSampler(optuna.samplers.RandomSampler):
    """One that thinks until another heartbeat of its trial is there."""

    def __init__(self, storage: DatabaseStorage) -> None:
        super().__init__()
        self._database = storage
        self.waited = 0

    def before_trial(self, study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        forget_heartbeats(self._database)
        wait_for(lambda: not self._database.lost_trials(study._study_id), seconds=5)
        self.waited += 1


def test_a_trial_whose_sampler_thinks_for_long_is_kept_alive_and_none_is_kept_in_mind(
    tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.worker.HEARTBEAT_SECONDS", 0.1)
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    sampler = SlowSampler(storage)
    monkeypatch.setattr("search.worker.make_sampler", lambda *_: sampler)
    make_worker(storage, tmp_path, data_cache, {}, **{"budget.trials": 3}).work()
    assert sampler.waited == 3
    assert (storage._tokens, storage._beats) == ({}, {})


def test_a_claimed_trial_that_cannot_be_read_is_read_again(
    storage: OwnedStorage, tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(storage, tmp_path, data_cache, {}, **{"budget.trials": 1})
    read, lost = storage.get_trial, [ProxyFailure("the connection is lost", is_transient=True)]

    def once_lost(trial_id: int) -> optuna.trial.FrozenTrial:
        if lost:
            raise lost.pop()
        return read(trial_id)

    monkeypatch.setattr(storage, "get_trial", once_lost)
    replace(worker, patience=Patience(30)).work()
    assert not lost
    assert worker.opened.study.trials[0].state == TrialState.COMPLETE


def test_a_trial_with_an_epoch_without_a_number_is_complete_and_one_with_no_number_has_diverged(
    storage: OwnedStorage, tmp_path: Path, data_cache: Path
) -> None:
    curves = iter([(math.nan, 0.5, 0.4), (math.nan, math.nan, math.nan)])

    def train(_: Mapping[str, Any], __: TrialContext) -> Iterator[EpochResult]:
        for epoch, accuracy in enumerate(next(curves), start=1):
            yield EpochResult(epoch, accuracy, 1.0, 1000.0, {"weight": torch.tensor(epoch)})

    settings = {"budget.trials": 2, "trial.epochs": 3, "pruner.name": "none"}
    worker = make_worker(storage, tmp_path, data_cache, {}, **settings)
    replace(worker, objective=train).work()
    first, second = worker.opened.records
    assert (first.state, first.value) == ("complete", 0.5)
    assert worker.checkpoints.load(0).epoch == 2
    assert (second.state, second.value) == ("diverged", None)
    assert second.reason == "the validation accuracy of no epoch is a number"


def test_after_a_trial_that_does_not_fit_comes_the_next_on_a_device_that_was_cleaned(
    storage: OwnedStorage, tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def too_large(*_: object) -> None:
        events.append("too large")
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")

    def objective(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        if "free" in events:
            return poor(parameters, context)
        return train({"width": 2, "batch_size": 32}, context)

    monkeypatch.setattr(ResNet, "forward", too_large)
    monkeypatch.setattr("search.worker.give_back", lambda _: events.append("free"))
    worker = make_worker(storage, tmp_path, data_cache, {}, **{"budget.trials": 1})
    replace(worker, objective=objective).work()
    assert events == [*["too large"] * 3, "free"], "of 32, 16 and 8 images"
    failed, complete = worker.opened.study.trials
    assert (failed.state, complete.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert failed.user_attrs["error"].startswith("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC")


def test_a_result_is_not_lost_when_connections_are_dropped_before_it_is_told(
    postgres_url: str, tmp_path: Path, data_cache: Path
) -> None:
    others = sqlalchemy.create_engine(postgres_url)
    dropped: list[int] = []

    class CutOff(Worker):
        def _tell(self, trial: optuna.Trial, outcome: Outcome, origin: str) -> None:
            if trial.number not in dropped:
                dropped.append(trial.number)
                with others.begin() as connection:
                    connection.exec_driver_sql(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                    )
            super()._tell(trial, outcome, origin)

    settings = {"budget.trials": 2}
    worker = make_worker(open_storage(postgres_url), tmp_path, data_cache, {}, **settings)
    fields = {name: getattr(worker, name) for name in Worker.__dataclass_fields__}
    replace(CutOff(**fields), patience=Patience(30)).work()
    others.dispose()
    assert dropped == [0, 1]
    trials = worker.opened.study.trials
    assert [(trial.state, trial.value) for trial in trials] == [(TrialState.COMPLETE, 0.1)] * 2
