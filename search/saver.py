"""Writing a trial's checkpoints while its next epoch is trained."""

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import Tensor

from model.trial import EpochResult
from studies.checkpoints import (
    Checkpoint,
    CheckpointDirectory,
    Resumable,
    state_name,
    weights_name,
)
from studies.text import shortened

WITHOUT_WEIGHTS = "trial %d: the checkpoint %s cannot be written (%s); the trial goes on without"
WITHOUT_STATE = (
    "trial %d: its state cannot be written (%s: %s); an interruption would cost it more than an "
    "epoch"
)

NOT_OURS = "trial %d: its last epoch is not written, since nobody knew whose it was"

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
    ) -> None:
        """
        Args:
            is_ours: whether the trial is surely still this worker's; asked in the thread when a
                file is ready, just before it takes the place of the earlier one: there may be
                minutes between all else, if the machine is frozen.
        """
        self._checkpoints, self._number, self._is_ours = checkpoints, trial_number, is_ours
        self._weights = weights_name(trial_number)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._checkpoint: Checkpoint | None = None
        self._resumable: Resumable | None = None
        self._pending: Future[tuple[Checkpoint | None, Resumable | None]] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        # Who loses the trial hears of that.
        if kind is None and self._pending and any(self._pending.result()):
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

        Of that, what could not be written because nobody knew whose the trial is, is kept still.
        """
        if self._pending:
            checkpoint, resumable = self._pending.result()
            self._checkpoint = self._checkpoint or checkpoint
            self._resumable = self._resumable or resumable
        self._pending = self._thread.submit(self._write, self._checkpoint, self._resumable)
        self._checkpoint = self._resumable = None

    def _write(
        self, checkpoint: Checkpoint | None, resumable: Resumable | None
    ) -> tuple[Checkpoint | None, Resumable | None]:
        """
        Returns:
            What may not be written.
        """
        not_ours: tuple[Checkpoint | None, Resumable | None] = (None, None)
        if checkpoint:
            with self._warning(self._weights, WITHOUT_WEIGHTS):
                if not self._checkpoints.save(self._number, checkpoint, self._is_ours):
                    not_ours = (checkpoint, None)
        if resumable:
            with self._warning(state_name(self._number, len(resumable.accuracies)), WITHOUT_STATE):
                if not self._checkpoints.save_state(self._number, resumable, self._is_ours):
                    not_ours = (not_ours[0], resumable)
        return not_ours

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
