from pathlib import Path
from typing import Any

import optuna
import pytest

from data.errors import UserError
from search.enqueue import enqueue_trial
from studies.config import load_study_file
from studies.storage import open_storage
from studies.study import OpenedStudy, create_or_continue


@pytest.fixture
def opened(tmp_path: Path) -> OpenedStudy:
    config = load_study_file("quickstart", {"budget.trials": 1, "space.depth": [18, 34]})
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    return create_or_continue(storage, config, "0" * 16, [])[0]


def test_a_configuration_waits_with_the_parameters_that_were_named(opened: OpenedStudy) -> None:
    line = enqueue_trial(opened, {"learning_rate": 0.25, "batch_size": 128})
    (trial,) = opened.study.trials
    assert trial.state == optuna.trial.TrialState.WAITING
    assert trial.system_attrs["fixed_params"] == {"learning_rate": 0.25, "batch_size": 128}
    assert line == (
        "study 'quickstart': trial 0 is waiting for a worker: learning_rate 0.25, batch_size 128"
    )


def test_beyond_the_budget_it_says_what_runs_it(opened: OpenedStudy) -> None:
    enqueue_trial(opened, {"depth": 34})
    line = enqueue_trial(opened, {"depth": 18})
    assert line.endswith(
        "the budget of 1 trial is taken: hpsearch run quickstart --trials 2 runs it"
    )


def test_a_worker_that_takes_it_at_once_is_no_trouble(
    opened: OpenedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = opened.study.enqueue_trial

    def taken_at_once(*arguments: Any, **options: Any) -> None:
        enqueue(*arguments, **options)
        opened.study.ask()

    monkeypatch.setattr(opened.study, "enqueue_trial", taken_at_once)
    assert "trial 0 is waiting" in enqueue_trial(opened, {"depth": 34})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.1}, "rate: no such parameter; there are learning_rate, optimizer"),
        ({"learning_rate": 7.0}, "learning_rate=7.0: not from 0.0001 to 0.5"),
        ({"learning_rate": "fast"}, "learning_rate=fast: not a number"),
        ({"learning_rate": True}, "learning_rate=True: not a number"),
        ({"optimizer": "adan"}, "optimizer=adan: the study offers sgd, adam"),
        ({"pooling": 1}, "pooling=1: the study offers max, average"),
        ({"width": 64}, "width=64: the study offers 8"),
    ],
)
def test_what_the_space_does_not_hold_is_refused_and_nothing_queued(
    opened: OpenedStudy, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        enqueue_trial(opened, {"batch_size": 64, **values})
    assert message in str(error.value)
    assert opened.study.trials == []
