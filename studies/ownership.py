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

import json
import os
import secrets
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from studies.results import ERROR, LOSSES, OWNER

LEASE_FRACTION = 0.8
"""Of the time after which a trial without a heartbeat is lost: so long it surely is not."""


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def worker_name(process_id: int) -> str:
    """How a worker is called in the study, from whatever machine."""
    return f"{socket.gethostname()}-{process_id}"


class NotOwned(Exception):
    """Raised by a write to a trial that is no longer this worker's; nothing is written."""


class OwnedStorage(BaseStorage):
    """A storage of Optuna's with trials that belong to whoever took them.

    Here is what a process knows of those that it has taken; where the trials are, is known to a
    `DatabaseStorage`, or to one on another machine that a `ProxiedStorage` speaks to.
    """

    def __init__(self, stale_seconds: int) -> None:
        """
        Args:
            stale_seconds: without a heartbeat for so long, a running trial is lost.
        """
        self._stale_seconds = stale_seconds
        self._tokens: dict[int, str] = {}  # By trial, of those that this process has taken.
        self._beats: dict[int, float] = {}  # By trial, when its last heartbeat was recorded.

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
        token = f"{worker_name(os.getpid())}-{secrets.token_hex(4)}"
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

    def holds(self, trial_id: int) -> bool:
        """Whether nobody can have taken this trial of ours away, by its last heartbeat.

        Asks nothing of the database, which may not answer.
        """
        beat = self._beats.get(trial_id)
        return beat is not None and _now() - beat < LEASE_FRACTION * self._stale_seconds

    def hand_back(self, trial_id: int) -> None:
        """Let any worker take this trial of ours; it keeps its number, parameters and values.

        Raises:
            NotOwned: it is not ours any more.
        """
        self.set_trial_state_values(trial_id, TrialState.WAITING)
        self._tokens.pop(trial_id, None)

    def take_back(self, study_id: int, worker: str, most_losses: int, reason: str) -> None:
        """Take away every trial of a worker that has died; see `take_away`."""
        running = (TrialState.RUNNING,)
        for trial in self.get_all_trials(study_id, deepcopy=False, states=running):
            owner = trial.user_attrs.get(OWNER)
            if isinstance(owner, str) and owner.startswith(f"{worker}-"):
                self.take_away(trial._trial_id, owner, most_losses, reason)

    def record_heartbeat(self, trial_id: int) -> None:
        """Of a trial that is still ours; of another's, nothing is recorded."""
        started = _now()
        if self.beat(trial_id, self._tokens.get(trial_id)):
            self._beats[trial_id] = started

    @abstractmethod
    def give(self, trial_id: int, token: str) -> bool:
        """Make a waiting trial that of who has this token; False if it is not waiting."""

    @abstractmethod
    def owner(self, trial_id: int) -> str | None:
        """The token of who has this trial; None if nobody."""

    @abstractmethod
    def beat(self, trial_id: int, token: str | None) -> bool:
        """Record a heartbeat of a trial, unless it is not that of who has this token.

        Args:
            token: None for whoever it is.

        Returns:
            Whether it was recorded.
        """

    @abstractmethod
    def take_away(self, trial_id: int, owner: str | None, most_losses: int, reason: str) -> bool:
        """Let any worker take a running trial whose own is lost; or fail it, if that is too often.

        Args:
            owner: who had it when its worker was found to be lost. If another has it by now,
                nothing is done.
            most_losses: how many workers it may lose.
            reason: of the last loss, in words.

        Returns:
            Whether it was taken away.
        """

    @abstractmethod
    def lost_trials(self, study_id: int) -> dict[int, str | None]:
        """The running trials without a heartbeat for too long, by the database's clock.

        Returns:
            Trial to owner.
        """


class DatabaseStorage(OwnedStorage, RDBStorage):
    """Optuna's storage in SQL, with trials that belong to whoever took them."""

    def __init__(
        self,
        url: str,
        engine_kwargs: dict[str, Any],
        heartbeat_interval: int,
        grace_period: int,
    ) -> None:
        OwnedStorage.__init__(self, grace_period)
        self._caller = threading.local()
        RDBStorage.__init__(
            self,
            url,
            engine_kwargs=engine_kwargs,
            heartbeat_interval=heartbeat_interval,
            grace_period=grace_period,
        )

    @contextmanager
    def on_behalf_of(self, token: str | None) -> Iterator[None]:
        """Let this thread write as who has this token, or as nobody: a server, for a client."""
        self._caller.token = token
        try:
            yield
        finally:
            self._caller.token = None

    def give(self, trial_id: int, token: str) -> bool:
        with _create_scoped_session(self.scoped_session) as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            if trial.state != TrialState.WAITING:
                return False
            trial.state = TrialState.RUNNING
            trial.datetime_start = datetime.now()
            self._set(session, trial_id, OWNER, token)
            heartbeat = models.TrialHeartbeatModel.where_trial_id(trial_id, session, True)
            if heartbeat is None:
                session.add(models.TrialHeartbeatModel(trial_id=trial_id))
            else:
                heartbeat.heartbeat = session.execute(sqlalchemy.func.now()).scalar()
        return True

    def owner(self, trial_id: int) -> str | None:
        with _create_scoped_session(self.scoped_session) as session:
            return self._owner(session, trial_id)

    def beat(self, trial_id: int, token: str | None) -> bool:
        if token is not None and self.owner(trial_id) != token:
            return False
        RDBStorage.record_heartbeat(self, trial_id)
        return True

    def take_away(self, trial_id: int, owner: str | None, most_losses: int, reason: str) -> bool:
        with _create_scoped_session(self.scoped_session) as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            if trial.state != TrialState.RUNNING or self._owner(session, trial_id) != owner:
                return False
            before = self._get(session, trial_id, LOSSES)
            losses = 1 + (before if isinstance(before, int) else 0)
            if losses > most_losses:
                times = "once" if losses == 1 else f"{losses} times"
                self._set(session, trial_id, ERROR, f"its worker was lost {times}; last: {reason}")
            self._set(session, trial_id, LOSSES, losses)
            self._set(session, trial_id, OWNER, None)
            # Last, since Optuna writes to no trial that has ended.
            if losses > most_losses:
                trial.state = TrialState.FAIL
                trial.datetime_complete = datetime.now()
            else:
                trial.state = TrialState.WAITING
        return True

    def lost_trials(self, study_id: int) -> dict[int, str | None]:
        return {trial_id: self.owner(trial_id) for trial_id in self._get_stale_trial_ids(study_id)}

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """Called by Optuna in the transaction of every write to a trial."""
        super().check_trial_is_updatable(trial_id, trial_state)
        token = getattr(self._caller, "token", None) or self._tokens.get(trial_id)
        if token is not None and self._owner(self.scoped_session(), trial_id) != token:
            raise NotOwned(f"trial {trial_id} belongs to another worker by now")

    def _owner(self, session: Session, trial_id: int) -> str | None:
        owner = self._get(session, trial_id, OWNER)
        return owner if isinstance(owner, str) else None

    def _get(self, session: Session, trial_id: int, key: str) -> Any:
        attribute = models.TrialUserAttributeModel
        found = session.execute(
            sqlalchemy.select(attribute.value_json).where(
                attribute.trial_id == trial_id, attribute.key == key
            )
        ).scalar()
        return None if found is None else json.loads(found)

    def _set(self, session: Session, trial_id: int, key: str, value: object) -> None:
        self._set_trial_attr_without_commit(
            session, models.TrialUserAttributeModel, trial_id, key, value
        )
