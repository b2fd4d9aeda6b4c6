import re

import optuna
import pytest

from data.errors import UserError
from studies.config import Budget, load_study_file
from studies.storage import open_storage, quiet_optuna
from studies.study import (
    VERSIONS,
    check_data,
    check_versions,
    create_or_continue,
    open_study,
    study_names,
    versions,
)
from tests.forked import PROCESSES

DIGEST = "0123456789abcdef"


def test_a_new_study_holds_its_settings_and_first_trials(storage_url: str) -> None:
    config = load_study_file("quickstart")
    opened, is_new = create_or_continue(
        open_storage(storage_url, create=True), config, DIGEST, [{"width": 8}]
    )
    assert is_new
    assert opened.config == config
    (trial,) = opened.study.trials
    assert trial.state == optuna.trial.TrialState.WAITING
    assert trial.system_attrs["fixed_params"] == {"width": 8}


def test_the_same_settings_continue_a_study_with_the_new_budget(
    storage_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="studies.study")
    storage = open_storage(storage_url, create=True)
    first, _ = create_or_continue(storage, load_study_file("quickstart"), DIGEST, [{}])
    again = load_study_file("quickstart", {"budget.trials": 99})
    opened, is_new = create_or_continue(storage, again, DIGEST, [{}])
    assert not is_new
    assert opened.identity == first.identity
    assert len(opened.study.trials) == 1
    assert opened.config.budget == Budget(trials=99, minutes=7.0)
    create_or_continue(storage, again, DIGEST, [{}])
    said = [one.getMessage() for one in caplog.records if one.name == "studies.study"]
    assert said == ["the budget of study quickstart is now 99 trials, before 20 trials"]


def test_so_is_how_many_checkpoints_are_kept(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    create_or_continue(storage, load_study_file("quickstart"), DIGEST, [])
    more = load_study_file("quickstart", {"checkpoints.keep": 20})
    create_or_continue(storage, more, DIGEST, [])
    assert open_study("quickstart", storage).config.checkpoints.keep == 20


def test_other_settings_are_refused_with_the_difference(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    create_or_continue(storage, load_study_file("quickstart"), DIGEST, [])
    changed = load_study_file("quickstart", {"trial.epochs": 3})
    with pytest.raises(UserError, match=r"trial\.epochs: the study has 10, given is 3"):
        create_or_continue(storage, changed, DIGEST, [])


def test_other_data_are_refused(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    config = load_study_file("quickstart")
    opened, _ = create_or_continue(storage, config, DIGEST, [])
    check_data(opened, DIGEST)
    with pytest.raises(UserError, match="created with other data"):
        create_or_continue(storage, config, "f" * 16, [])


def test_other_versions_are_refused_by_name(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    here = versions()
    opened, _ = create_or_continue(storage, load_study_file("quickstart"), DIGEST, [])
    opened.study.set_user_attr(VERSIONS, {**here, "torch": f"{here['torch'].partition('+')[0]}+x"})
    check_versions(opened)
    opened.study.set_user_attr(VERSIONS, {**here, "torch": "2.9.0"})
    said = rf"other versions \(torch 2.9.0 there, {re.escape(here['torch'])} here\)"
    with pytest.raises(UserError, match=said):
        create_or_continue(storage, load_study_file("quickstart"), DIGEST, [])


def test_an_unknown_study_says_which_there_are(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    create_or_continue(storage, load_study_file("quickstart"), DIGEST, [])
    with pytest.raises(UserError, match="no study 'nope' in this storage; there: quickstart"):
        open_study("nope", storage)


def test_a_study_of_plain_optuna_is_not_touched(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    with quiet_optuna():
        optuna.create_study(study_name="theirs", storage=storage).ask()
    assert study_names(storage) == []
    with pytest.raises(UserError, match="'theirs' was not made by hpsearch"):
        open_study("theirs", storage)


def _create(url: str) -> tuple[bool, str]:
    opened, is_new = create_or_continue(
        open_storage(url, create=True), load_study_file("quickstart"), DIGEST, [{}]
    )
    return is_new, opened.identity


def test_of_processes_that_create_a_study_at_once_one_does(storage_url: str) -> None:
    with PROCESSES.Pool(4) as pool:
        results = pool.map(_create, [storage_url] * 4)
    assert [is_new for is_new, _ in results].count(True) == 1
    assert len({identity for _, identity in results}) == 1
    assert len(open_study("quickstart", open_storage(storage_url)).study.trials) == 1
