"""What optuna-dashboard shows of ours: figures, drawn anew now and then by one of all workers of a
study, and files."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from optuna.trial import TrialState

from search.export import baseline_record
from studies.artifacts import EVALUATED, EVALUATION, study_rows, trial_rows
from studies.checkpoints import CheckpointDirectory, weights_name
from studies.ownership import OwnedStorage
from studies.patience import reason
from studies.stores import Folder
from studies.study import OpenedStudy

PAUSE_SECONDS = 60.0
LONGEST_DRAWING_SECONDS = 30.0
"""That a worker waits for at its end; of 300 trials the first takes 3, on a busy machine."""
LONGEST_JOIN_SECONDS = 1.0
LOOK_SECONDS = 0.1

logger = logging.getLogger(__name__)


def draw(
    opened: OpenedStudy,
    storage: OwnedStorage,
    checkpoints: CheckpointDirectory,
    pause_seconds: float,
) -> None:
    """Draw the study's figures and offer its best weights, if it is for this process to do so.

    Who fails at it has had its turn: it is the next one's when another trial has ended.

    Args:
        pause_seconds: since they were drawn last, by whomever. 0 at the worker's end: then it is
            for the last of all workers that have a trial.
    """
    study_id = opened.study._study_id
    if pause_seconds == 0 and any(
        trial.state == TrialState.RUNNING for trial in storage.open_trials(study_id)[1]
    ):
        return
    if not storage.take_turn(study_id, pause_seconds):
        return
    from studies.shown import figure_rows  # Plotly takes a second to be imported.

    trials = opened.study.get_trials(deepcopy=False)
    there = checkpoints.trial_numbers()
    weights = {
        trial._trial_id: weights_name(trial.number)
        for trial in trials
        if trial.number in there and trial.state.is_finished()
    }
    rows = trial_rows(opened, weights, storage.get_study_system_attrs(study_id))
    rows |= figure_rows(opened, trials, baseline_record(opened))
    for key, value in rows.items():
        storage.set_study_system_attr(study_id, key, value)


@contextmanager
def drawn_now_and_then(
    draw: Callable[[float], None], may_wait: Callable[[], bool]
) -> Iterator[None]:
    """Draw in a thread, and once more at the end if there is time for it.

    Args:
        draw: given the pause since the last time.
        may_wait: whether there is; asked until it is drawn, so that whoever stops the worker need
            not wait.
    """
    ended, finished = threading.Event(), threading.Event()

    def attempt(pause_seconds: float) -> None:
        with _at_most_warning("the dashboard's figures could not be drawn"):
            draw(pause_seconds)

    def now_and_then() -> None:
        while not ended.wait(PAUSE_SECONDS):
            attempt(PAUSE_SECONDS)
        if finished.is_set():
            attempt(0.0)

    thread = threading.Thread(target=now_and_then, name="drawing", daemon=True)
    thread.start()
    try:
        yield
        if may_wait():
            finished.set()
            ended.set()
            latest = time.monotonic() + LONGEST_DRAWING_SECONDS
            while thread.is_alive() and may_wait() and time.monotonic() < latest:
                thread.join(LOOK_SECONDS)
    finally:
        ended.set()
        thread.join(LONGEST_JOIN_SECONDS)


def offer_export(opened: OpenedStudy, folder: Path) -> None:
    """Let the files of the exported model there be downloaded in the dashboard."""
    with _at_most_warning("the exported model is not offered in the dashboard"):
        _offer(opened, (file.name for file in folder.iterdir()))


def offer_evaluation(opened: OpenedStudy, root: Path, files: Mapping[str, bytes]) -> None:
    """Keep an evaluation with the study, and let it be seen and downloaded in the dashboard.

    Args:
        root: where what a run makes is kept.
        files: of `studies.artifacts.EVALUATION`.
    """
    with _at_most_warning("the evaluation is not offered in the dashboard"):
        folder = Folder(opened.directory(root) / EVALUATED)
        gone = EVALUATION - files.keys()
        for name in gone:
            folder.remove(name)
        for name, content in files.items():
            folder.write(name, content)
        _offer(opened, files, gone)


def _offer(opened: OpenedStudy, names: Iterable[str], gone: Iterable[str] = ()) -> None:
    for key, value in study_rows(opened, names, gone).items():
        opened.storage.set_study_system_attr(opened.study._study_id, key, value)


@contextmanager
def _at_most_warning(what: str) -> Iterator[None]:
    """Let no error through: nobody's trial is worse for a picture that is not there."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        logger.warning("%s: %s: %s", what, type(error).__name__, reason(error))
