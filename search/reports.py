"""What a running trial says to its study; kept, in order, while the database does not answer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import Trial

from studies.patience import Patience
from studies.results import EPOCHS_BEFORE, FALLBACKS

Parameters = Mapping[str, tuple[float, BaseDistribution]]
"""In Optuna's internal representation, each with its distribution."""


Write = Callable[[Mapping[int, float], Mapping[str, Any], Parameters], None]
"""Writes what is new of a trial, all or nothing of it; see `OwnedStorage.report`."""


class Reports:
    """The reports of one trial, delivered together once the database answers.

    To deliver them twice does no harm: that happens if the connection is lost before the database
    could say that it has them.
    """

    def __init__(
        self,
        trial: Trial,
        write: Write,
        patience: Patience,
        may_wait: Callable[[], bool],
        holds: Callable[[], bool],
    ) -> None:
        """
        Args:
            may_wait: asked while the database does not answer and the trial has ended.
            holds: whether the trial is surely still this worker's, as far as is known here.
        """
        self._trial, self._write, self._patience = trial, write, patience
        self._may_wait, self._holds = may_wait, holds
        # Optuna's copy of the trial, which the pruner is shown: as of when it was taken, and on.
        self._frozen = trial._cached_frozen_trial
        self.reported = max(self._frozen.intermediate_values, default=0)
        """The last epoch that an earlier run has reported; 0 if there is none."""
        self._accuracies: dict[int, float] = {}
        self._attributes: dict[str, Any] = {}
        self._parameters: dict[str, tuple[float, BaseDistribution]] = {}

    @property
    def resumes(self) -> bool:
        """Whether the trial has been run before."""
        return self.reported > 0

    def attribute(self, key: str, value: Any) -> None:
        self._attributes[key] = value

    def accuracy(self, epoch: int, accuracy: float) -> None:
        self._accuracies[epoch] = accuracy

    def goes_on_after(self, epoch: int) -> None:
        """Forget the epochs after this one that an earlier run has reported: their state is lost,
        and they are trained again."""
        self.attribute(EPOCHS_BEFORE, epoch)
        if epoch == 0 and FALLBACKS in self._frozen.user_attrs:
            self.attribute(FALLBACKS, "")
        for reported in (self._accuracies, self._frozen.intermediate_values):
            for later in [known for known in reported if known > epoch]:
                del reported[later]

    @contextmanager
    def parameters(self) -> Iterator[None]:
        """Keep the parameters that the trial suggests meanwhile, to be delivered with the rest."""
        storage = self._trial.storage
        self._trial.storage = cast(BaseStorage, _Collected(storage, self._parameters))
        try:
            yield
        finally:
            self._trial.storage = storage

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

        Until a resumed trial is as far as before it is not judged again: each look is another
        chance to stop what would have been the best. While reports are pending the pruner does not
        know enough.
        """
        if self._accuracies or epoch < self.reported:
            return False
        return self._patience.attempt(self._trial.should_prune, otherwise=False)

    def _deliver(self) -> bool:
        if self._accuracies or self._attributes or self._parameters:
            self._write(self._accuracies, self._attributes, self._parameters)
            self._frozen.intermediate_values.update(self._accuracies)
            self._frozen.user_attrs.update(self._attributes)
            for pending in (self._accuracies, self._attributes, self._parameters):
                pending.clear()
        return True


class _Collected:
    """A trial's storage, but that it keeps the parameters instead of writing each by itself."""

    def __init__(
        self, storage: BaseStorage, parameters: dict[str, tuple[float, BaseDistribution]]
    ) -> None:
        self._storage, self._parameters = storage, parameters

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_param(
        self, _: int, name: str, value: float, distribution: BaseDistribution
    ) -> None:
        self._parameters[name] = (value, distribution)
