"""Writing a trial's checkpoints while its next epoch is trained."""

import logging
import pickle
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from torch import Tensor

from model.trial import EpochResult
from studies.checkpoints import Checkpoint, CheckpointDirectory, Resumable

logger = logging.getLogger(__name__)


class Saver:
    """Writes one epoch's files at a time, in a thread; leaving the context waits for the last.

    What is kept can be written later, or never, if the trial is another worker's by then. What
    cannot be written is warned of, and the trial goes on.
    """

    def __init__(self, checkpoints: CheckpointDirectory, trial_number: int) -> None:
        self._checkpoints, self._number = checkpoints, trial_number
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._checkpoint: Checkpoint | None = None
        self._resumable: Resumable | None = None
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def keep(self, result: EpochResult, best: bool, accuracies: tuple[float, ...] | None) -> None:
        """Copy the weights, if they are the best, and the state, if accuracies are given.

        The next epoch changes them.
        """
        if best:
            weights = _copied(result.weights)
            self._checkpoint = Checkpoint(weights, result.epoch, result.validation_accuracy)
        if accuracies is not None and result.state is not None:
            self._resumable = Resumable(accuracies, _copied(result.state))

    def write(self) -> None:
        """Begin to write what is kept, once what was written before is on the disk."""
        if self._pending:
            self._pending.result()
        self._pending = self._thread.submit(self._write, self._checkpoint, self._resumable)
        self._checkpoint = self._resumable = None

    def _write(self, checkpoint: Checkpoint | None, resumable: Resumable | None) -> None:
        if checkpoint:
            try:
                self._checkpoints.save(self._number, checkpoint)
            except OSError as error:
                logger.warning(
                    "trial %d: the checkpoint %s cannot be written (%s); the trial goes on without",
                    self._number,
                    error.filename,
                    error.strerror,
                )
        if resumable:
            try:
                self._checkpoints.save_state(self._number, resumable)
            except (OSError, TypeError, AttributeError, pickle.PicklingError) as error:
                logger.warning(
                    "trial %d: its state cannot be written (%s); an interruption would cost it "
                    "more than an epoch",
                    self._number,
                    f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error,
                )


def _copied(value: Any) -> Any:
    """With every tensor in it on the CPU, and no other's."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
