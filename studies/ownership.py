"""A storage in which a running trial belongs to one worker, by the database.

Optuna knows who runs a trial only by a heartbeat, and lets anybody write to it. Here a worker that
takes a trial leaves a token with it, in the transaction that makes it RUNNING. Every later write of
that worker to the trial looks for its token in its own transaction; another may have been given the
trial in the meantime, because this worker was taken for dead. So two workers never run one trial,
and one that comes back from a long pause changes nothing.

A trial whose worker was lost is WAITING again, under its number and with its values: to Optuna, and
so to sampler, pruner, dashboard and user, it is one trial that took longer. (A new trial in place
of a failed one, as Optuna's retry callback makes, would be counted and learnt from twice.)
"""

import os
import secrets
import socket
import time
from abc import abstractmethod
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from studies.patience import STORAGE_ERRORS
from studies.results import TrialRecord
from studies.standing import Ended, Reach, Standing

LAUNCH_VARIABLE = "HPSEARCH_LAUNCH"
LEASE_FRACTION = 0.8
"""Of the time after which a trial without a heartbeat is lost: so long it surely is not."""


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def worker_name(process_id: int, launch: str = "") -> str:
    """How a worker is called in the study, from whatever machine.

    Args:
        launch: what its launcher has given it at its start, at random: of two machines or
            containers that have the same name, processes may have the same number.
    """
    return "-".join(filter(None, (socket.gethostname(), launch, str(process_id))))


def worker_of(token: str) -> str:
    """The name of the worker that has made this token."""
    return token.rpartition("-")[0]


def own_name() -> str:
    """How this worker is called."""
    return worker_name(os.getpid(), os.environ.get(LAUNCH_VARIABLE, ""))


def _new_token() -> str:
    return f"{own_name()}-{secrets.token_hex(4)}"


class NotOwned(Exception):
    """Raised by a write to a trial that is no longer this worker's; nothing is written."""


class Unreadable(ValueError):
    """Raised where a trial is read of which something is stored that nobody can read."""


class OwnedStorage(BaseStorage):
    """A storage of Optuna's with trials that belong to whoever took them.

    Here is what a process knows of those that it has taken; where the trials are, is known to a
    `DatabaseStorage`, or to one on another machine that a `ProxiedStorage` speaks to. Of a study it
    is asked for a few columns (see `studies.standing`), where Optuna would read it whole.
    """

    url: str
    """With its password, if it has one."""

    def __init__(self, stale_seconds: int) -> None:
        """
        Args:
            stale_seconds: without a heartbeat for so long, a running trial is lost.
        """
        self._stale_seconds = stale_seconds
        self._tokens: dict[int, str] = {}  # By trial, of those that this process has taken.
        self._beats: dict[int, float] = {}  # By trial, when its last heartbeat was recorded.
        self._creating: str | None = None  # The token of a trial that may have been made.

    def create(self, study_id: int, limit: int | None) -> int | None:
        """Make a new trial, this process's own from the start.

        Called again after the connection was lost, it finds the trial if it was made.

        Args:
            limit: how many trials that have not failed the study may have.

        Returns:
            The trial; None if there are so many already.
        """
        started = _now()
        again = self._creating is not None
        token = self._creating = self._creating or _new_token()
        trial_id = self.make(study_id, limit, token, again)
        self._creating = None
        if trial_id is not None:
            self._tokens[trial_id], self._beats[trial_id] = token, started
        return trial_id

    def may_have_created(self) -> bool:
        """Whether the connection was lost while this process made a trial."""
        return self._creating is not None

    def take(self, trial_id: int) -> bool:
        """Make a waiting trial this process's own: True for one process alone.

        Called again after the connection was lost, it finds out whether the trial was taken.
        """
        started = _now()
        if self.may_have_taken(trial_id):
            if self.beat(trial_id, self._tokens[trial_id]):
                self._beats[trial_id] = started
                return True
            del self._tokens[trial_id]
        token = _new_token()
        before = self._tokens.pop(trial_id, None)  # It may have been ours before.
        try:
            given = self.give(trial_id, token)
        except Exception:
            # The connection may have been lost when it had been given.
            self._tokens[trial_id] = token
            self._beats.pop(trial_id, None)
            raise
        if given:
            self._tokens[trial_id], self._beats[trial_id] = token, started
        elif before is not None:
            self._tokens[trial_id] = before
        return given

    def may_have_taken(self, trial_id: int) -> bool:
        """Whether the connection was lost while this process took the trial."""
        return trial_id in self._tokens and trial_id not in self._beats

    def forget(self, trial_id: int) -> None:
        """Of a trial that this process writes nothing to any more: it has ended, or is another's.

        Not before: a write without its token would be one in nobody's name.
        """
        self._tokens.pop(trial_id, None)
        self._beats.pop(trial_id, None)

    def holds(self, trial_id: int) -> bool:
        """Whether nobody can have taken this trial of ours away, by its last heartbeat.

        Asks nothing of the database, which may not answer.
        """
        beat = self._beats.get(trial_id)
        return beat is not None and _now() - beat < LEASE_FRACTION * self._stale_seconds

    def is_ours(self, trial_id: int) -> bool:
        """Whether this trial of ours is so still, by the database; if that is silent, see `holds`.

        A machine that was frozen as a whole cannot know it by a clock of its own.
        """
        token = self._tokens.get(trial_id)
        try:
            return token is not None and self.owner(trial_id) == token
        except STORAGE_ERRORS:
            return self.holds(trial_id)

    def take_back(self, study_id: int, worker: str, most_losses: int, reason: str) -> bool:
        """Take away every trial of a worker that has died; see `take_away`.

        Returns:
            Whether it had one.
        """
        _, trials = self.open_trials(study_id)
        running = [trial.trial_id for trial in trials if trial.state == TrialState.RUNNING]
        owners = {trial_id: self.owner(trial_id) for trial_id in running}
        taken = [
            self.take_away(trial_id, owner, most_losses, reason)
            for trial_id, owner in owners.items()
            if owner is not None and worker_of(owner) == worker
        ]
        return any(taken)

    def give_up(self, trial_id: int, most_losses: int, reason: str) -> bool:
        """Take a trial of ours away from this process, which is lost to it; see `take_away`.

        Called again after the connection was lost, it does no harm.
        """
        token = self._tokens.get(trial_id)
        return token is not None and self.take_away(trial_id, token, most_losses, reason)

    def record_heartbeat(self, trial_id: int) -> None:
        """Of a trial that is still ours; of another's, nothing is recorded."""
        started = _now()
        token = self._tokens.get(trial_id)
        if token is None or not self.beat(trial_id, token):
            return
        if self._tokens.get(trial_id) == token:  # It may have been forgotten meanwhile.
            self._beats[trial_id] = started

    @abstractmethod
    def make(self, study_id: int, limit: int | None, token: str, again: bool) -> int | None:
        """Make a running trial that is that of who has this token.

        Args:
            limit: see `create`.
            again: whether it may have been made before, and is to be found then.
        """

    @abstractmethod
    def hand_back(self, trial_id: int) -> None:
        """Let any worker take this trial of ours; it keeps its number, parameters and values.

        If it waits already, as after a connection that was lost before the answer, all is done.

        Raises:
            NotOwned: another has it.
            UpdateFinishedTrialError: it has ended.
            Unreadable: it cannot be read.
        """

    @abstractmethod
    def give(self, trial_id: int, token: str) -> bool:
        """Make a waiting trial that of who has this token; False if it is not waiting."""

    @abstractmethod
    def owner(self, trial_id: int) -> str | None:
        """The token of who has this trial; None if nobody."""

    @abstractmethod
    def beat(self, trial_id: int, token: str) -> bool:
        """Record a heartbeat of a trial, unless it is not that of who has this token.

        Returns:
            Whether it was recorded.
        """

    @abstractmethod
    def take_away(
        self,
        trial_id: int,
        owner: str | None,
        most_losses: int,
        reason: str,
        if_silent: bool = False,
    ) -> bool:
        """Let any worker take a running trial whose own is lost; or fail it, if that is too often.

        Args:
            owner: who had it when its worker was found to be lost. If another has it by now,
                nothing is done.
            most_losses: how many workers it may lose without a new epoch in between.
            reason: of the last loss, in words.
            if_silent: whether nothing is done either if its heart beats again by now.

        One that cannot be read is failed in any case, and what was stored of it removed.

        Returns:
            Whether it was taken away, or has failed.
        """

    @abstractmethod
    def lost_trials(self, study_id: int) -> dict[int, str | None]:
        """The running trials without a heartbeat for too long, by the database's clock.

        Returns:
            Trial to owner.
        """

    @abstractmethod
    def silent_trials(self, study_id: int) -> dict[int, datetime]:
        """The same, for who looks at a study.

        Returns:
            Trial to its last heartbeat, in UTC.
        """

    @abstractmethod
    def report(
        self,
        trial_id: int,
        accuracies: Mapping[int, float],
        attributes: Mapping[str, Any],
        parameters: Mapping[str, tuple[float, BaseDistribution]],
    ) -> None:
        """Write what is new of a running trial of ours, all or nothing of it.

        Args:
            accuracies: by epoch; in place of what was reported of it before.
            attributes: of the user, likewise. With a smaller number of `EPOCHS_BEFORE` than is
                stored, what was reported of later epochs is removed: they are of an earlier run,
                and this one begins before them.
            parameters: in Optuna's internal representation, each with its distribution.

        Raises:
            NotOwned: it is not ours any more.
            UpdateFinishedTrialError: it has ended.
        """

    @abstractmethod
    def end(
        self,
        trial_id: int,
        state: TrialState,
        value: float | None = None,
        note: str | None = None,
    ) -> None:
        """End a running trial of ours. Called again after the connection was lost, it does no harm.

        Args:
            value: what the trial is judged by.
            note: for optuna-dashboard, in Markdown; one that the trial has already stays.

        Raises:
            ValueError: the value is not a number.
            NotOwned: it is not ours any more.
            UpdateFinishedTrialError: another has ended it.
        """

    @abstractmethod
    def take_turn(self, study_id: int, pause_seconds: float) -> bool:
        """Whether this process is the one to draw a study anew, for those who look at it.

        That is so for one process alone, if since the last time trials have ended and a while has
        passed.

        Args:
            pause_seconds: how long a while is, by the database's clock.
        """

    @abstractmethod
    def count(self, study_id: int) -> int:
        """How many trials a study has."""

    @abstractmethod
    def open_trials(self, study_id: int) -> tuple[int, list[Standing]]:
        """The trials of a study from the first one on that has not ended.

        Returns:
            How many of those before it have not failed, and the trials from it on, by number.
        """

    @abstractmethod
    def last_ended(self, study_id: int, since: int, most: int) -> list[Ended]:
        """The trials from a number on that ended last, the last first.

        Args:
            most: how many.
        """

    @abstractmethod
    def outlines(self, study_id: int, numbers: Collection[int], best: int) -> list[TrialRecord]:
        """The trials of these numbers, and the best complete ones; see `studies.standing.outline`.

        Args:
            best: how many.
        """

    @abstractmethod
    def reached(self, study_id: int, epoch: int, since: int) -> list[Reach]:
        """What each trial of a study had reached by an epoch, in the order in which they began.

        Args:
            since: the identity of the first trial that is asked for.
        """
