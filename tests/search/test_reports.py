from collections.abc import Mapping
from functools import partial

import optuna
import pytest
from optuna.trial import Trial

from search.reports import Reports
from studies.ownership import NotOwned, OwnedStorage
from studies.patience import Patience, StorageLost
from studies.results import EPOCHS_BEFORE, FALLBACKS
from studies.storage import open_storage, quiet_optuna
from tests.conftest import Postgres


@pytest.fixture
def storage(stoppable: Postgres) -> OwnedStorage:
    return open_storage(stoppable.url)


@pytest.fixture
def trial(storage: OwnedStorage) -> Trial:
    pruner = optuna.pruners.ThresholdPruner(lower=0.3)
    with quiet_optuna():
        return optuna.create_study(storage=storage, study_name="s", pruner=pruner).ask()


def reports_of(
    trial: Trial, storage: OwnedStorage, patience: float = 30, holds: bool = True
) -> Reports:
    write = partial(storage.report, trial._trial_id)
    return Reports(trial, write, Patience(patience), may_wait=lambda: True, holds=lambda: holds)


def stored(stoppable: Postgres) -> optuna.trial.FrozenTrial:
    study = optuna.load_study(study_name="s", storage=open_storage(stoppable.url))
    return study.trials[0]


def test_what_is_reported_during_an_outage_is_delivered_after_it_in_order(
    trial: Trial, storage: OwnedStorage, stoppable: Postgres
) -> None:
    reports = reports_of(trial, storage)
    reports.accuracy(1, 0.5)
    assert reports.deliver()
    stoppable.stop()
    for epoch in (2, 3):
        reports.attribute("best_epoch", epoch)
        reports.accuracy(epoch, epoch / 10)
        assert reports.deliver(), "nobody can have taken it yet"
        assert not reports.is_hopeless(epoch)
    stoppable.start()
    reports.deliver_all()
    assert stored(stoppable).intermediate_values == {1: 0.5, 2: 0.2, 3: 0.3}
    assert stored(stoppable).user_attrs == {"best_epoch": 3}


def test_a_trial_that_another_may_have_by_now_is_not_surely_ours(
    trial: Trial, storage: OwnedStorage, stoppable: Postgres
) -> None:
    reports = reports_of(trial, storage, holds=False)
    reports.accuracy(1, 0.5)
    assert reports.deliver(), "the database says so"
    stoppable.stop()
    reports.accuracy(2, 0.5)
    assert not reports.deliver()


def test_it_is_judged_again_when_the_database_is_back(
    trial: Trial, storage: OwnedStorage, stoppable: Postgres
) -> None:
    reports = reports_of(trial, storage)
    stoppable.stop()
    reports.accuracy(1, 0.2)
    reports.deliver()
    assert not reports.is_hopeless(1)
    stoppable.start()
    reports.accuracy(2, 0.2)
    reports.deliver_all()
    assert reports.is_hopeless(2)


def test_an_outage_that_lasts_too_long_ends_the_trial(
    trial: Trial, storage: OwnedStorage, stoppable: Postgres
) -> None:
    reports = reports_of(trial, storage, patience=1)
    stoppable.stop()
    reports.accuracy(1, 0.2)
    with pytest.raises(StorageLost):
        reports.deliver_all()


def test_what_is_another_s_by_now_takes_no_reports(
    storage: OwnedStorage, stoppable: Postgres
) -> None:
    with quiet_optuna():
        study = optuna.create_study(storage=storage, study_name="s")
    waiting = storage.create_new_trial(
        study._study_id, optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING)
    )
    assert storage.take(waiting)
    reports = reports_of(Trial(study, waiting), storage)
    assert storage.take_away(waiting, storage.owner(waiting), 3, "silence")
    reports.accuracy(1, 0.2)
    with pytest.raises(NotOwned):
        reports.deliver()
    assert stored(stoppable).intermediate_values == {}


@pytest.mark.parametrize(("epoch", "left"), [(2, {}), (0, {FALLBACKS: ""})])
def test_what_was_done_otherwise_is_forgotten_with_all_epochs(
    epoch: int, left: dict[str, str]
) -> None:
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(value=0.5, user_attrs={FALLBACKS: "not compiled"}))
    written: dict[str, object] = {}

    def write(_: object, attributes: Mapping[str, object], __: object) -> None:
        written.update(attributes)

    trial = Trial(study, study.trials[0]._trial_id)
    reports = Reports(trial, write, Patience(0), may_wait=lambda: True, holds=lambda: True)
    reports.goes_on_after(epoch)
    reports.deliver_all()
    assert written == {EPOCHS_BEFORE: epoch, **left}
