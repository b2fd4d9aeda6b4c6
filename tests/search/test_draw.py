"""Drawing for the dashboard: it may fail, hang or be stopped, and training does not notice."""

import json
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard.artifact._backend import list_study_artifacts

import search.draw
from search.draw import draw, drawn_now_and_then, offer_evaluation
from studies.checkpoints import CheckpointDirectory, open_checkpoints
from studies.config import load_study_file
from studies.ownership import OwnedStorage
from studies.storage import open_storage
from studies.study import OpenedStudy, create_or_continue
from tests.system.processes import wait_for

PROMPT_SECONDS = 5.0


@pytest.fixture
def storage(tmp_path: Path) -> OwnedStorage:
    return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


@pytest.fixture
def opened(storage: OwnedStorage) -> OpenedStudy:
    opened, _ = create_or_continue(storage, load_study_file("quickstart"), "00", enqueued=[])
    opened.study.add_trials([create_trial(value=number / 10) for number in range(5)])
    return opened


@pytest.fixture
def checkpoints(opened: OpenedStudy, tmp_path: Path) -> CheckpointDirectory:
    return open_checkpoints(opened, tmp_path, None)


def shown(opened: OpenedStudy) -> int:
    """How many complete trials the figures have."""
    figures = get_plotly_graph_objects(opened.storage.get_study_system_attrs(1))
    if not figures:
        return 0
    return len(json.loads(figures["best-so-far"])["data"][0]["y"])


def test_a_drawing_that_fails_warns_and_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pause_seconds = search.draw.PAUSE_SECONDS
    monkeypatch.setattr(search.draw, "PAUSE_SECONDS", 0.01)
    pauses: list[float] = []

    def failing(pause_seconds: float) -> None:
        pauses.append(pause_seconds)
        if len(pauses) == 1:
            raise OSError("the disk\x1b[2J is full")

    with drawn_now_and_then(failing, lambda: True):
        wait_for(lambda: len(pauses) > 2, 10)
    assert pauses[-1] == 0
    assert set(pauses[:-1]) == {0.01}
    assert pause_seconds >= 60
    (warning,) = [item for item in caplog.records if item.levelname == "WARNING"]
    assert warning.getMessage().startswith("the dashboard's figures could not be drawn: OSError: ")


def test_what_ends_the_work_is_not_kept_back_and_nothing_is_drawn_then() -> None:
    pauses: list[float] = []
    with pytest.raises(ZeroDivisionError), drawn_now_and_then(pauses.append, lambda: True):
        raise ZeroDivisionError
    with drawn_now_and_then(pauses.append, lambda: False):
        pass
    assert pauses == []


def test_who_stops_a_worker_does_not_wait_for_its_last_drawing() -> None:
    begun, over = threading.Event(), threading.Event()

    def hanging(_: float) -> None:
        begun.set()
        over.wait(60)

    started = time.monotonic()
    with drawn_now_and_then(hanging, lambda: not begun.is_set()):
        pass
    assert begun.is_set()
    assert time.monotonic() - started < PROMPT_SECONDS
    over.set()


def test_a_last_drawing_that_hangs_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search.draw, "LONGEST_DRAWING_SECONDS", 0.2)
    over = threading.Event()

    def hanging(_: float) -> None:
        over.wait(60)

    started = time.monotonic()
    with drawn_now_and_then(hanging, lambda: True):
        pass
    assert time.monotonic() - started < PROMPT_SECONDS
    over.set()


def test_of_workers_that_end_the_last_one_draws_alone(
    opened: OpenedStudy, storage: OwnedStorage, checkpoints: CheckpointDirectory
) -> None:
    at_its_end = partial(draw, opened, storage, checkpoints, 0.0)
    opened.study.add_trial(create_trial(state=TrialState.RUNNING))
    at_its_end()
    assert shown(opened) == 0, "another still has a trial"
    storage.set_trial_state_values(6, TrialState.COMPLETE, [0.9])
    at_its_end()
    assert shown(opened) == 6
    before = storage.get_study_system_attrs(1)
    at_its_end()
    assert storage.get_study_system_attrs(1) == before, "nothing is new"


def test_a_drawing_that_failed_is_made_up_for_when_another_trial_has_ended(
    opened: OpenedStudy,
    storage: OwnedStorage,
    checkpoints: CheckpointDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("studies.shown.figure_rows", None)
        with pytest.raises(TypeError):
            draw(opened, storage, checkpoints, 60.0)
    opened.study.add_trial(create_trial(value=0.9))
    draw(opened, storage, checkpoints, 60.0)
    assert shown(opened) == 0, "a minute has not passed"
    draw(opened, storage, checkpoints, 0.0)
    assert shown(opened) == 6


def test_an_evaluation_takes_the_place_of_the_one_before(
    opened: OpenedStudy, tmp_path: Path
) -> None:
    offer_evaluation(opened, tmp_path, {"evaluation.json": b"{}", "mistakes.png": b"a picture"})
    offer_evaluation(opened, tmp_path, {"evaluation.json": b"{}"})
    offered = list_study_artifacts(opened.storage.get_study_system_attrs(1))
    assert [item["filename"] for item in offered] == ["evaluation.json"]
    (file,) = tmp_path.glob("*/evaluation/*")
    assert file.name == "evaluation.json"


def test_an_evaluation_that_cannot_be_kept_with_its_study_is_said_and_that_is_all(
    opened: OpenedStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    before = opened.storage.get_study_system_attrs(1)
    offer_evaluation(opened, tmp_path / "file", {"evaluation.json": b"{}"})
    (warning,) = [item for item in caplog.records if item.levelname == "WARNING"]
    assert warning.getMessage().startswith("the evaluation is not offered in the dashboard: ")
    assert opened.storage.get_study_system_attrs(1) == before
