import random
import signal
import time
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from data.errors import UserError
from search.budget import (
    MOST_FAILURES_IN_A_ROW,
    Turn,
    budgeted,
    check_failures,
    claim,
    next_turn,
)
from studies.ownership import worker_name
from studies.results import LOSSES, OWNER
from studies.standing import Ended
from studies.storage import open_storage, quiet_optuna
from tests.forked import PROCESSES

COMPLETE, FAIL = TrialState.COMPLETE, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


def trials(*states: TrialState) -> list[FrozenTrial]:
    made = []
    for number, state in enumerate(states):
        trial = create_trial(state=state, value=0.5 if state == COMPLETE else None)
        trial.number = number
        made.append(trial)
    return made


def test_the_budget_belongs_to_the_first_trials_that_have_not_failed() -> None:
    found = budgeted(trials(COMPLETE, FAIL, RUNNING, WAITING, COMPLETE), limit=3)
    assert [trial.number for trial in found] == [0, 2, 3]


@pytest.mark.parametrize(
    ("states", "limit", "turn"),
    [
        ([], 2, Turn.NEW),
        ([COMPLETE], 2, Turn.NEW),
        ([COMPLETE, RUNNING], 2, Turn.WAIT),
        ([COMPLETE, WAITING], 2, Turn.WAIT),
        ([COMPLETE, COMPLETE], 2, Turn.DONE),
        ([COMPLETE, FAIL], 2, Turn.NEW),
        ([COMPLETE, COMPLETE, RUNNING], 2, Turn.DONE),
        ([COMPLETE, COMPLETE, WAITING], 2, Turn.DONE),
        ([COMPLETE] * 50, None, Turn.NEW),
    ],
)
def test_a_worker_creates_waits_or_ends(
    states: list[TrialState], limit: int | None, turn: Turn
) -> None:
    assert next_turn(trials(*states), limit, may_create=True) is turn


def test_a_grid_ends_when_its_last_point_has() -> None:
    assert next_turn(trials(COMPLETE, RUNNING), 10, may_create=False) is Turn.WAIT
    assert next_turn(trials(COMPLETE, COMPLETE), 10, may_create=False) is Turn.DONE


def test_a_trial_that_was_handed_back_is_run_again_under_its_number(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    study = optuna.create_study(storage=storage, direction="maximize")
    with quiet_optuna():
        claimed = claim(study, storage, limit=1, may_create=True)
        assert isinstance(claimed, int)
        first = Trial(study, claimed)
        rate = first.suggest_float("learning_rate", 0, 1)
        assert claim(study, storage, limit=1, may_create=True) is Turn.WAIT
        storage.hand_back(claimed)
        assert claim(study, storage, limit=1, may_create=True) == claimed
        again = Trial(study, claimed)
    assert again.number == first.number
    assert again.suggest_float("learning_rate", 0, 1) == rate


def test_a_larger_budget_goes_on_where_the_smaller_ended(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    study = optuna.create_study(storage=storage, direction="maximize")
    with quiet_optuna():
        for limit in (1, 2):
            claimed = claim(study, storage, limit, may_create=True)
            assert isinstance(claimed, int)
            study.tell(Trial(study, claimed), 0.5)
            assert claim(study, storage, limit, may_create=True) is Turn.DONE
    assert len(study.trials) == 2


LIMIT = 20
KILLS = 5


def _work(url: str, seed: int) -> None:
    """A worker whose trials take little time, some of which fail."""
    storage = open_storage(url)
    study = optuna.load_study(study_name="budget", storage=storage)
    chance = random.Random(seed)
    with quiet_optuna():
        while True:
            claimed = claim(study, storage, LIMIT, may_create=True)
            if isinstance(claimed, int):
                time.sleep(chance.uniform(0.05, 0.15))
                trial = Trial(study, claimed)
                failed = trial.number == 3 or chance.random() < 0.2
                state = FAIL if failed else chance.choice([COMPLETE, TrialState.PRUNED])
                study.tell(trial, 0.5 if state == COMPLETE else None, state=state)
            elif claimed is Turn.WAIT:
                time.sleep(0.01)
            else:
                return


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_the_number_of_finished_trials_is_exact_though_trials_fail_and_workers_are_killed(
    storage_url: str, workers: int
) -> None:
    storage = open_storage(storage_url, create=True)
    study = optuna.create_study(study_name="budget", storage=storage, direction="maximize")
    for _ in range(5):
        study.enqueue_trial({})
    seeds = count()

    def start() -> BaseProcess:
        process = PROCESSES.Process(target=_work, args=(storage_url, next(seeds)), daemon=True)
        process.start()
        return process

    processes = [start() for _ in range(workers)]
    kills = 0
    while processes:
        time.sleep(0.05)
        alive = {worker_name(item.pid): item for item in processes if item.is_alive() and item.pid}
        running = study.get_trials(deepcopy=False, states=(RUNNING,))
        at_work = {trial.user_attrs[OWNER].rpartition("-")[0] for trial in running} & set(alive)
        if kills < KILLS and at_work:
            alive[min(at_work)].kill()
            kills += 1
        for ended in [item for item in processes if not item.is_alive()]:
            processes.remove(ended)
            if ended.exitcode != 0:
                assert ended.exitcode == -signal.SIGKILL
                assert ended.pid
                storage.take_back(study._study_id, worker_name(ended.pid), KILLS, "killed")
                processes.append(start())
    found = study.get_trials(deepcopy=False)
    states = [trial.state for trial in found]
    assert states.count(COMPLETE) + states.count(TrialState.PRUNED) == LIMIT
    assert states.count(FAIL) > 0
    assert RUNNING not in states
    assert sum(trial.user_attrs.get(LOSSES, 0) for trial in found) > 0, "kills in mid-trial"


ENQUEUED = 100


def _drain(url: str) -> list[int]:
    """A worker with trials of three epochs that take no time."""
    storage = open_storage(url)
    study = optuna.load_study(study_name="queue", storage=storage)
    numbers = []
    with quiet_optuna():
        while isinstance(claimed := claim(study, storage, ENQUEUED, may_create=True), int):
            trial = Trial(study, claimed)
            numbers.append(trial.number)
            for epoch in range(1, 4):
                trial.report(0.1, epoch)
            storage.record_heartbeat(claimed)
            study.tell(trial, 0.5)
    return numbers


def _drain_with_optuna_alone(url: str) -> list[int]:
    study = optuna.load_study(study_name="queue", storage=url)
    numbers = []
    while (trial := study.ask()).number < ENQUEUED:
        numbers.append(trial.number)
    return numbers


def _queue(url: str) -> optuna.Study:
    storage = open_storage(url, create=True)
    study = optuna.create_study(study_name="queue", storage=storage, direction="maximize")
    for _ in range(ENQUEUED):
        study.enqueue_trial({})
    return study


def test_each_enqueued_trial_goes_to_one_worker(storage_url: str) -> None:
    _check_queue(storage_url, processes=6)


def test_sixteen_writers_lock_none_out_of_sqlite(tmp_path: Path) -> None:
    _check_queue(f"sqlite:///{tmp_path / 'a.db'}", processes=16)


def _check_queue(url: str, processes: int) -> None:
    study = _queue(url)
    with PROCESSES.Pool(processes) as pool:
        runs = pool.map(_drain, [url] * processes, chunksize=1)
    assert sorted(number for run in runs for number in run) == list(range(ENQUEUED))
    assert sum(1 for run in runs if run) > 1
    assert all(trial.state == COMPLETE for trial in study.get_trials(deepcopy=False))


def test_optuna_alone_gives_an_enqueued_trial_to_several_workers(tmp_path: Path) -> None:
    """On SQLite, which is why they are taken as they are here; unless Optuna has mended it."""
    given_twice = 0
    for attempt in range(5):
        url = f"sqlite:///{tmp_path / f'{attempt}.db'}"
        _queue(url)
        with PROCESSES.Pool(6) as pool:
            runs = pool.map(_drain_with_optuna_alone, [url] * 6, chunksize=1)
        numbers = [number for run in runs for number in run]
        given_twice += len(numbers) - len(set(numbers))
        if given_twice:
            break
    assert given_twice > 0


def failed(number: int) -> Ended:
    return Ended(number, FAIL, "boom")


def test_a_search_in_which_all_trials_fail_ends_with_the_last_reason() -> None:
    failures = [failed(number) for number in reversed(range(MOST_FAILURES_IN_A_ROW))]
    with pytest.raises(UserError, match=r"the last 10 trials all failed; trial 9: boom"):
        check_failures(failures)


def test_one_success_among_the_failures_is_enough_to_go_on() -> None:
    failures = [failed(number) for number in range(MOST_FAILURES_IN_A_ROW - 1)]
    check_failures(failures)
    check_failures([*failures, Ended(30, COMPLETE, None)])
    check_failures([Ended(31, FAIL, None), *failures])
