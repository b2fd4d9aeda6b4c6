from pathlib import Path
from typing import Any

import optuna
import pytest

from data.errors import UserError
from model.hyperparameters import NOTEBOOK, REFERENCE
from search.prepare import create_from_file, first_trials
from search.space import make_space
from studies.config import SHIPPED, StudyConfig, load_study_file
from studies.ownership import OwnedStorage
from studies.storage import open_storage

NOTEBOOK_POINT = {
    "learning_rate": 1e-3,
    "optimizer": "adam",
    "schedule": "constant",
    "batch_size": 64,
    "weight_decay": 1e-6,  # The range's lower bound: the notebook's is 0.
    "augmentation": "flip+resized-crop",
    "momentum": 0.9,
    "label_smoothing": 0.0,
    "pooling": "max",
}

REFERENCE_POINT = {name: REFERENCE[name] for name in NOTEBOOK_POINT}

SPACE = load_study_file("quickstart").space


def quickstart(*starts: dict[str, Any], **changes: Any) -> StudyConfig:
    return load_study_file("quickstart", {"start": list(starts), **changes})


@pytest.mark.parametrize("study", SHIPPED)
def test_the_first_trial_is_the_notebook_s_configuration(study: str) -> None:
    baseline = first_trials(load_study_file(study), study)[0]
    for name in ("learning_rate", "optimizer", "batch_size", "augmentation", "schedule"):
        assert baseline[name] == NOTEBOOK[name]
    assert baseline["learning_rate"] == 1e-3
    assert baseline["optimizer"] == "adam"
    assert baseline["batch_size"] == 64
    assert baseline["augmentation"] == "flip+resized-crop"


@pytest.mark.parametrize("study", SHIPPED)
def test_the_second_trial_is_the_reference(study: str) -> None:
    config = load_study_file(study)
    second = first_trials(config, study)[1]
    assert second == {name: REFERENCE[name] for name in second}
    assert REFERENCE.keys() <= second.keys()


def test_what_the_reference_has_and_the_space_has_not_is_as_near_as_can_be() -> None:
    space = {
        **{"optimizer": ["sgd", "muon"], "schedule": ["constant", REFERENCE["schedule"]]},
        **{"learning_rate": {"low": 1e-3, "high": 0.01}, "augmentation": ["flip", "none"]},
        **{"batch_size": REFERENCE["batch_size"], "color_jitter": [False, True]},
        **{"label_smoothing": [0.0, REFERENCE["label_smoothing"]]},
    }
    assert first_trials(quickstart(space=space), "mine") == [
        {
            **{"optimizer": "muon", "schedule": REFERENCE["schedule"], "learning_rate": 0.01},
            **{"color_jitter": False, "label_smoothing": REFERENCE["label_smoothing"]},
        }
    ]


@pytest.mark.parametrize("name", ["optimizer", "schedule"])
@pytest.mark.parametrize("left_out", [True, False])
def test_the_reference_is_not_tried_with_another_optimizer_or_schedule(
    name: str, left_out: bool
) -> None:
    space = {**SPACE, name: (NOTEBOOK[name],)}
    if left_out:
        del space[name]
    (baseline,) = first_trials(quickstart(space=space), "mine")
    assert baseline["learning_rate"] == NOTEBOOK["learning_rate"]


def test_a_space_without_the_notebook_s_optimizer_is_searched_without_the_baseline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = quickstart(**{"space.optimizer": ["muon", "adamw"]})
    assert first_trials(config, "mine") == [REFERENCE_POINT]
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    create_from_file(storage, config, "mine", tmp_path)
    assert "its optimizer, 'adam', is not in the search space" in caplog.text


def test_another_objective_has_no_baseline_but_its_starts() -> None:
    own = {"trial.objective": "mine:train"}
    assert first_trials(quickstart(**own), "mine") == []
    assert first_trials(quickstart({"batch_size": 128}, **own), "mine") == [{"batch_size": 128}]


@pytest.mark.parametrize("study", SHIPPED)
def test_the_starts_that_ship_name_every_parameter_that_varies(study: str) -> None:
    config = load_study_file(study)
    baseline, _, *starts = first_trials(config, study)
    assert len(starts) == len(config.start)
    assert all(start.keys() == baseline.keys() for start in starts)


def test_starts_come_in_their_order_each_point_once_without_what_is_fixed() -> None:
    sgd = {"optimizer": "sgd", "learning_rate": 0.1}
    config = quickstart(sgd, {"batch_size": 256}, NOTEBOOK_POINT, {**sgd, "width": 8}, sgd)
    assert first_trials(config, "mine") == [
        NOTEBOOK_POINT,
        REFERENCE_POINT,
        sgd,
        {"batch_size": 256},
    ]


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"learning_rate": 7.0}, "start.1.learning_rate=7.0: not from 0.0001 to 0.5"),
        ({"rate": 0.1}, "start.1.rate: no such parameter; there are learning_rate, optimizer"),
        ({"pooling": 1}, "start.1.pooling=1: the study offers max, average"),
        ({"width": 64}, "start.1.width=64: the study offers 8; correct it, or add --set"),
        ({"width": 8}, "start.1: names no parameter that varies"),
        ({}, "start.1: names no parameter that varies"),
    ],
)
def test_a_start_outside_the_space_is_one_line_that_names_it(
    start: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        first_trials(quickstart({"batch_size": 64}, start), "mine.toml")
    assert f"mine.toml: {said}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def storage(tmp_path: Path) -> OwnedStorage:
    return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


def waiting(storage: OwnedStorage, config: StudyConfig, root: Path) -> list[dict[str, Any]]:
    study = create_from_file(storage, config, "mine", root).opened.study
    return [trial.system_attrs["fixed_params"] for trial in study.trials]


def test_a_new_study_queues_the_notebook_s_the_starts_and_then_the_earlier_study_s(
    storage: OwnedStorage, data_cache: Path
) -> None:
    old = create_from_file(storage, quickstart(name="old"), "old", data_cache).opened
    start = {**NOTEBOOK_POINT, "optimizer": "sgd", "learning_rate": 0.1}
    other = {**NOTEBOOK_POINT, "optimizer": "nadam"}
    for value, point in ((0.5, start), (0.4, NOTEBOOK_POINT), (0.3, other)):
        old.study.add_trial(
            optuna.trial.create_trial(
                value=value, params={**point, "width": 8}, distributions=make_space(SPACE)
            )
        )
    config = quickstart(start, {"batch_size": 256}, **{"sampler.warm_start": "old"})
    assert waiting(storage, config, data_cache) == [
        NOTEBOOK_POINT,
        REFERENCE_POINT,
        start,
        {"batch_size": 256},
        other,
    ]


def test_a_study_continues_without_new_trials_and_refuses_other_starts(
    storage: OwnedStorage, data_cache: Path
) -> None:
    config = quickstart({"batch_size": 256})
    before = waiting(storage, config, data_cache)
    assert len(before) == 3
    assert waiting(storage, config, data_cache) == before
    changed = quickstart({"batch_size": 128})
    with pytest.raises(UserError, match=r"start\.0\.batch_size: the study has 256, given is 128"):
        create_from_file(storage, changed, "mine", data_cache)


def test_a_grid_comes_after_the_starts(storage: OwnedStorage, data_cache: Path) -> None:
    space = {"learning_rate": {"low": 1e-3, "high": 0.1, "log": True}, "width": 8}
    config = quickstart({"learning_rate": 0.05}, space=space, **{"sampler.name": "grid"})
    rates = [point["learning_rate"] for point in waiting(storage, config, data_cache)]
    assert rates[:2] == [1e-3, 0.05]
    assert sorted(rates[2:]) == pytest.approx([1e-3, 1e-2, 0.1])
