"""What a running trial says to its study; kept, in order, while the database does not answer."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from optuna.trial import Trial

from studies.patience import Patience


class Reports:
    """The reports of one trial. Each is delivered once the database answers, the oldest first.

    To deliver one twice does no harm: that happens if the connection is lost before the database
    could say that it has it.
    """

    def __init__(
        self,
        trial: Trial,
        patience: Patience,
        may_wait: Callable[[], bool],
        holds: Callable[[], bool],
    ) -> None:
        """
        Args:
            may_wait: asked while the database does not answer and the trial has ended.
            holds: whether the trial is surely still this worker's, as far as is known here.
        """
        self._trial, self._patience = trial, patience
        self._may_wait, self._holds = may_wait, holds
        frozen = patience.call(lambda: trial.storage.get_trial(trial._trial_id), may_wait)
        self._reported = set(frozen.intermediate_values)
        self._judged = max(self._reported, default=0)
        self._pending: deque[Callable[[], None]] = deque()

    def attribute(self, key: str, value: Any) -> None:
        self._pending.append(partial(self._trial.set_user_attr, key, value))

    def accuracy(self, epoch: int, accuracy: float) -> None:
        self._pending.append(partial(self._report, epoch, accuracy))

    def deliver(self) -> bool:
        """Tell the study what is pending, if the database answers.

        Returns:
            Whether the trial is surely still this worker's: what it leaves on the disk may be
            replaced.

        Raises:
            NotOwned: the trial is another worker's by now.
            StorageLost: the database has not answered for too long.
        """
        return self._patience.attempt(self._deliver, otherwise=False) or self._holds()

    def deliver_all(self) -> None:
        """Tell the study what is pending, and wait for the database as long as need be.

        Raises:
            NotOwned, StorageLost: as `deliver`.
        """
        self._patience.call(self._deliver, self._may_wait)

    def is_hopeless(self, epoch: int) -> bool:
        """Whether the pruner gives the trial up after this epoch.

        Until a resumed trial is as far as before, the pruner would see its old epochs, and has
        judged them. While reports are pending it does not know enough.
        """
        if self._pending or epoch < self._judged:
            return False
        return self._patience.attempt(self._trial.should_prune, otherwise=False)

    def _deliver(self) -> bool:
        while self._pending:
            self._pending[0]()
            self._pending.popleft()
        return True

    def _report(self, epoch: int, accuracy: float) -> None:
        if epoch in self._reported:
            # A trial that was handed back runs again; trial.report would ignore the new value.
            self._trial.storage.set_trial_intermediate_value(self._trial._trial_id, epoch, accuracy)
        else:
            self._trial.report(accuracy, step=epoch)
            self._reported.add(epoch)
