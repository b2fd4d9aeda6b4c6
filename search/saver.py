"""Writing a trial's checkpoints while its next epoch is trained."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import Tensor

from data.files import always
from model.trial import EpochResult
from studies.checkpoints import (
    Checkpoint,
    CheckpointDirectory,
    Resumable,
    state_name,
    weights_name,
)
from studies.text import shortened

LAST_SECONDS = 3.0
"""That a worker waits for files when its grace period is over: Compose and Kubernetes kill it 30 s
after SIGTERM, its launcher 5 s after a second Ctrl-C."""
LOOK_SECONDS = 0.1

WITHOUT_WEIGHTS = "trial %d: the checkpoint %s cannot be written (%s); the trial goes on without"
WITHOUT_STATE = (
    "trial %d: its state cannot be written (%s: %s); an interruption would cost it more than an "
    "epoch"
)

NOT_OURS = "trial %d: its last epoch is not written, since nobody knew whose it was"
LATE = (
    "trial %d: its last files are not waited for any longer; it may have to repeat an epoch or two"
)

logger = logging.getLogger(__name__)


class Saver:
    """Writes one epoch's files at a time, in a thread; leaving the context waits for the last.

    What is kept can be written later, or never, if the trial is another worker's by then. What
    cannot be written, whatever the reason, is warned of, and the trial goes on.
    """

    def __init__(
        self,
        checkpoints: CheckpointDirectory,
        trial_number: int,
        is_ours: Callable[[], bool],
        may_wait: Callable[[], bool] = always,
    ) -> None:
        """
        Args:
            is_ours: whether the trial is surely still this worker's; asked in the thread when a
                file is ready, just before it takes the place of the earlier one: there may be
                minutes between all else, if the machine is frozen.
            may_wait: asked while a file is written; if not, it is waited for `LAST_SECONDS` longer,
                and then left to the thread, which ends with the process at the latest.
        """
        self._checkpoints, self._number, self._is_ours = checkpoints, trial_number, is_ours
        self._may_wait = may_wait
        self._weights = weights_name(trial_number)
        self._checkpoint: Checkpoint | None = None
        self._resumable: Resumable | None = None
        self._thread: threading.Thread | None = None
        self._not_ours: tuple[Checkpoint | None, Resumable | None] = (None, None)
        self._latest: float | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_written = self._is_written(self._has_time)
        # Who loses the trial hears of that.
        if kind is None and not is_written:
            logger.warning(LATE, self._number)
        elif kind is None and any(self._not_ours):
            logger.warning(NOT_OURS, self._number)

    def keep(self, result: EpochResult, best: bool, accuracies: tuple[float, ...] | None) -> None:
        """Copy the weights, if they are the best, and the state, if accuracies are given.

        The next epoch changes them.
        """
        if best:
            with self._warning(self._weights, WITHOUT_WEIGHTS):
                weights = _copied(result.weights)
                self._checkpoint = Checkpoint(weights, result.epoch, result.validation_accuracy)
        if accuracies is not None and result.state is not None:
            with self._warning(state_name(self._number, len(accuracies)), WITHOUT_STATE):
                self._resumable = Resumable(accuracies, _copied(result.state))

    def write(self) -> None:
        """Begin to write what is kept, once what was written before is on the disk.

        Of that, what could not be written because nobody knew whose the trial is, is kept still; so
        is all if there is no time to wait.
        """
        if self._is_written(self._has_time):
            self._begin()

    def finish(self) -> None:
        """Write what is kept, and wait for that as long as it takes."""
        self._is_written(always)
        self._begin()
        self._is_written(always)

    def _has_time(self) -> bool:
        if self._may_wait():
            return True
        if self._latest is None:
            self._latest = time.monotonic() + LAST_SECONDS
        return time.monotonic() < self._latest

    def _is_written(self, may_wait: Callable[[], bool]) -> bool:
        while self._thread and self._thread.is_alive() and may_wait():
            self._thread.join(LOOK_SECONDS)
        return not (self._thread and self._thread.is_alive())

    def _begin(self) -> None:
        checkpoint, resumable = self._not_ours
        kept = (self._checkpoint or checkpoint, self._resumable or resumable)
        self._checkpoint = self._resumable = None
        # At its end a process does not wait for a daemon.
        self._thread = threading.Thread(target=self._write, args=kept, name="saver", daemon=True)
        self._thread.start()

    def _write(self, checkpoint: Checkpoint | None, resumable: Resumable | None) -> None:
        """Keep what may not be written."""
        self._not_ours = (None, None)
        if checkpoint:
            with self._warning(self._weights, WITHOUT_WEIGHTS):
                if not self._checkpoints.save(self._number, checkpoint, self._is_ours):
                    self._not_ours = (checkpoint, None)
        if resumable:
            with self._warning(state_name(self._number, len(resumable.accuracies)), WITHOUT_STATE):
                if not self._checkpoints.save_state(self._number, resumable, self._is_ours):
                    self._not_ours = (self._not_ours[0], resumable)

    @contextmanager
    def _warning(self, name: str, message: str) -> Iterator[None]:
        """Let no error through: what is written is of the user's making, and so is the place."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            # Of a file beside it, maybe, which could not be removed.
            where = error.filename if isinstance(error, OSError) else None
            why = error.strerror if isinstance(error, OSError) else None
            where = where or self._checkpoints.store.location(name)
            why = why or shortened(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)
            logger.warning(message, self._number, where, why)


def _copied(value: Any) -> Any:
    """With every tensor in it on the CPU, and no other's."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
