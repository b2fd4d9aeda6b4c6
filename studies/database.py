"""The storage in SQL itself: Optuna's, with trials that belong to whoever took them.

What a worker writes in one step is one transaction, in as few statements as there are tables.
"""

import json
import logging
import math
import threading
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Self

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from studies import standing
from studies.notes import note_rows, quoted
from studies.ownership import NotOwned, OwnedStorage, Unreadable, worker_of
from studies.patience import reason as said_by
from studies.results import (
    EARLIER_RUNS,
    EPOCHS_BEFORE,
    ERROR,
    FRUITLESS,
    LOSSES,
    OWNER,
    WORKER,
    TrialRecord,
    fruitless,
    runs_until,
    utc_now,
)
from studies.standing import UNREADABLE, Ended, Reach, Standing, parsed

READING: Mapping[str, Any] = {"reading": True}
"""The execution option of a connection that writes nothing; see `studies.storage`."""

logger = logging.getLogger(__name__)

_OWNER = aliased(models.TrialUserAttributeModel)
_OF_OWNER = sqlalchemy.and_(_OWNER.trial_id == models.TrialModel.trial_id, _OWNER.key == OWNER)


def _clock(dialect: str) -> Any:
    """The database's, in UTC; its column has no time zone, and connections may differ in theirs."""
    if dialect == "postgresql":
        return sqlalchemy.func.timezone("utc", sqlalchemy.func.now(), type_=sqlalchemy.DateTime())
    return sqlalchemy.func.current_timestamp()


@cache
def _upsert(dialect: str, model: Any, replace: bool) -> Any:
    """The statement that inserts a row, in place of that of the same key or unless there is one.

    To build it takes time.
    """
    insert = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect]
    table = model.__table__
    unique = next(
        item for item in table.constraints if isinstance(item, sqlalchemy.UniqueConstraint)
    )
    statement: Any = insert(table)
    if model is models.TrialHeartbeatModel:
        statement = statement.values(heartbeat=_clock(dialect))
    if not replace:
        return statement.on_conflict_do_nothing(index_elements=list(unique.columns))
    others = set(table.columns) - set(table.primary_key) - set(unique.columns)
    return statement.on_conflict_do_update(
        index_elements=list(unique.columns),
        set_={column.name: statement.excluded[column.name] for column in others},
    )


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
        self._warned_of: set[int] = set()
        """Trials that cannot be read. A study is read again and again."""
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

    def make(self, study_id: int, limit: int | None, token: str, again: bool) -> int | None:
        trials = models.TrialModel
        of_study = trials.study_id == study_id
        alive = sqlalchemy.func.count(sqlalchemy.case((trials.state != TrialState.FAIL, 1)))
        with _create_scoped_session(self.scoped_session) as session:
            # As Optuna does: numbers are given to one process after the other.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            if again:
                made = session.execute(
                    sqlalchemy.select(trials.trial_id)
                    .join(_OWNER, _OF_OWNER)
                    .where(of_study, _OWNER.value_json == json.dumps(token))
                ).scalar()
                if made is not None:
                    # Long ago, maybe: it has had no heartbeat since.
                    if self._locked(session, made) == (TrialState.RUNNING, token):
                        self._put(session, models.TrialHeartbeatModel, [{"trial_id": made}])
                    return int(made)
            number, taken = session.execute(
                sqlalchemy.select(sqlalchemy.func.count(), alive).where(of_study)
            ).one()
            if limit is not None and taken >= limit:
                return None
            trial = trials(
                study_id=study_id,
                number=number,
                state=TrialState.RUNNING,
                datetime_start=datetime.now(),
            )
            session.add(trial)
            session.flush()
            trial_id = int(trial.trial_id)
            self._put_owner(session, trial_id, token)
        return trial_id

    def give(self, trial_id: int, token: str) -> bool:
        with _create_scoped_session(self.scoped_session) as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            if trial.state != TrialState.WAITING:
                return False
            trial.state = TrialState.RUNNING
            trial.datetime_start = datetime.now()
            self._put_owner(session, trial_id, token)
        return True

    def hand_back(self, trial_id: int) -> None:
        found = self.get_trial(trial_id)
        with _create_scoped_session(self.scoped_session) as session:
            if self._locked(session, trial_id) == (TrialState.WAITING, None):
                return
            self._check_own(session, trial_id)
            self._put_attributes(session, trial_id, _left(found, utc_now(), lost=False))
            self._set_state(session, trial_id, state=TrialState.WAITING)

    def _put_owner(self, session: Session, trial_id: int, token: str) -> None:
        """With a heartbeat: a trial that has none would never be found to be lost."""
        self._put_attributes(session, trial_id, {OWNER: token, WORKER: worker_of(token)})
        self._put(session, models.TrialHeartbeatModel, [{"trial_id": trial_id}])

    def owner(self, trial_id: int) -> str | None:
        self._begin_reading()
        with _create_scoped_session(self.scoped_session) as session:
            return self._owner(session, trial_id)

    def beat(self, trial_id: int, token: str) -> bool:
        with _create_scoped_session(self.scoped_session) as session:
            if self._locked(session, trial_id) != (TrialState.RUNNING, token):
                return False
            self._put(session, models.TrialHeartbeatModel, [{"trial_id": trial_id}])
        return True

    def take_away(
        self,
        trial_id: int,
        owner: str | None,
        most_losses: int,
        reason: str,
        if_silent: bool = False,
    ) -> bool:
        beats, unreadable = models.TrialHeartbeatModel, ""
        try:
            found = self.get_trial(trial_id)
        except Unreadable as error:
            unreadable = str(error)
        with _create_scoped_session(self.scoped_session) as session:
            if self._locked(session, trial_id) != (TrialState.RUNNING, owner):
                return False
            # A beat waits for the lock on the trial, or was there first and is seen here.
            if if_silent and not self._is_silent(session, trial_id):
                return False
            if unreadable:
                # Whoever took it would stumble over it.
                self._clear(session, trial_id)
                self._fail(session, trial_id, unreadable)
                logger.warning("the trial of identity %d has failed: %s", trial_id, unreadable)
                return True
            before = self._get(session, trial_id, LOSSES)
            losses = 1 + (before if isinstance(before, int) else 0)
            last_sign = session.execute(
                sqlalchemy.select(beats.heartbeat).where(beats.trial_id == trial_id)
            ).scalar()
            attributes = _left(found, last_sign or utc_now(), lost=True)
            in_a_row, epochs = fruitless(
                self._get(session, trial_id, FRUITLESS), len(found.intermediate_values)
            )
            attributes |= {LOSSES: losses, FRUITLESS: [in_a_row, epochs]}
            self._put_attributes(session, trial_id, attributes)
            if in_a_row > most_losses:
                times = f"{in_a_row} times without a new epoch in between"
                times = "once" if in_a_row == 1 else times
                self._fail(session, trial_id, f"its worker was lost {times}; last: {reason}")
            else:
                self._set_state(session, trial_id, state=TrialState.WAITING)
        return True

    def _clear(self, session: Session, trial_id: int) -> None:
        """Remove all that is stored of a trial but its number and its heartbeat."""
        for model in (
            models.TrialParamModel,
            models.TrialUserAttributeModel,
            models.TrialSystemAttributeModel,
            models.TrialIntermediateValueModel,
            models.TrialValueModel,
        ):
            session.execute(sqlalchemy.delete(model).where(model.trial_id == trial_id))
        self._set_state(session, trial_id, datetime_start=None)

    def _fail(self, session: Session, trial_id: int, error: str) -> None:
        self._put_attributes(session, trial_id, {OWNER: None, ERROR: error})
        self._put_note(session, trial_id, f"**Failed**: {quoted(error)}.")
        self._set_state(session, trial_id, state=TrialState.FAIL, datetime_complete=utc_now())

    def _set_state(self, session: Session, trial_id: int, **values: Any) -> None:
        table = models.TrialModel.__table__
        session.execute(
            sqlalchemy.update(table).where(table.c.trial_id == trial_id).values(**values)
        )

    def lost_trials(self, study_id: int) -> dict[int, str | None]:
        return {trial_id: owner for trial_id, _, owner in self._silent(study_id)}

    def silent_trials(self, study_id: int) -> dict[int, datetime]:
        return {trial_id: beat for trial_id, beat, _ in self._silent(study_id)}

    def _silent(self, study_id: int) -> list[tuple[int, datetime, str | None]]:
        """Each with its last heartbeat and its owner."""
        trials, beats = models.TrialModel, models.TrialHeartbeatModel
        found = self.read(
            sqlalchemy.select(
                trials.trial_id, beats.heartbeat, _clock(self.engine.name), _OWNER.value_json
            )
            .join(beats, beats.trial_id == trials.trial_id)
            .outerjoin(_OWNER, _OF_OWNER)
            .where(trials.study_id == study_id, trials.state == TrialState.RUNNING)
        )
        return [
            (trial_id, beat, _as_owner(parsed(owner)))
            for trial_id, beat, now, owner in found
            if now - beat > self._longest_silence
        ]

    def _is_silent(self, session: Session, trial_id: int) -> bool:
        beats = models.TrialHeartbeatModel
        beat, now = session.execute(
            sqlalchemy.select(beats.heartbeat, _clock(self.engine.name)).where(
                beats.trial_id == trial_id
            )
        ).one()
        return bool(now - beat > self._longest_silence)

    @property
    def _longest_silence(self) -> timedelta:
        return timedelta(seconds=self._stale_seconds)

    def report(
        self,
        trial_id: int,
        accuracies: Mapping[int, float],
        attributes: Mapping[str, Any],
        parameters: Mapping[str, tuple[float, BaseDistribution]],
    ) -> None:
        intermediate = models.TrialIntermediateValueModel
        with _create_scoped_session(self.scoped_session) as session:
            self._check_own(session, trial_id)
            if EPOCHS_BEFORE in attributes:
                self._begin_after(session, trial_id, attributes[EPOCHS_BEFORE])
            reports = []
            for epoch, accuracy in accuracies.items():
                value, kind = intermediate.intermediate_value_to_stored_repr(accuracy)
                report = {"intermediate_value": value, "intermediate_value_type": kind}
                reports.append({"trial_id": trial_id, "step": epoch, **report})
            self._put(session, intermediate, reports)
            self._put_attributes(session, trial_id, attributes)
            self._put(
                session,
                models.TrialParamModel,
                [
                    {
                        "trial_id": trial_id,
                        "param_name": name,
                        "param_value": value,
                        "distribution_json": distribution_to_json(distribution),
                    }
                    for name, (value, distribution) in parameters.items()
                ],
            )

    def _begin_after(self, session: Session, trial_id: int, epoch: int) -> None:
        """Remove what an earlier run has reported of later epochs, unless that was done before.

        A report that is said twice, or comes late, is to remove nothing of this run.
        """
        reported = self._get(session, trial_id, EPOCHS_BEFORE)
        if isinstance(reported, int) and reported > epoch:
            values = models.TrialIntermediateValueModel
            of_later = sqlalchemy.and_(values.trial_id == trial_id, values.step > epoch)
            session.execute(sqlalchemy.delete(values).where(of_later))

    def end(
        self,
        trial_id: int,
        state: TrialState,
        value: float | None = None,
        note: str | None = None,
    ) -> None:
        if value is not None and math.isnan(value):
            raise ValueError(f"trial {trial_id} cannot end with {value}")
        values = models.TrialValueModel
        with _create_scoped_session(self.scoped_session) as session:
            if self._check_own(session, trial_id, ended_as=state):
                return
            if value is not None:
                stored, kind = values.value_to_stored_repr(value)
                row = {"objective": 0, "value": stored, "value_type": kind}
                self._put(session, values, [{"trial_id": trial_id, **row}])
            if note:
                self._put_note(session, trial_id, note)
            self._set_state(session, trial_id, state=state, datetime_complete=utc_now())

    def _put_note(self, session: Session, trial_id: int, note: str) -> None:
        """Unless somebody has written one already, in the dashboard."""
        trials, attribute = models.TrialModel, models.StudySystemAttributeModel
        study_id = session.execute(
            sqlalchemy.select(trials.study_id).where(trials.trial_id == trial_id)
        ).scalar_one()
        rows = [
            {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
            for key, value in note_rows(trial_id, note).items()
        ]
        self._put(session, attribute, rows, replace=False)

    def take_turn(self, study_id: int, pause_seconds: float) -> bool:
        last_turn = standing.last_turn(study_id, _clock(self.engine.name))
        now, ended, stored = self.read(last_turn)[0]
        if standing.next_turn(now, ended, stored, pause_seconds) is None:
            return False
        with _create_scoped_session(self.scoped_session) as session:
            # Of those who have come so far, one after the other looks again.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            now, ended, stored = session.execute(last_turn).one()
            turn = standing.next_turn(now, ended, stored, pause_seconds)
            if turn is None:
                return False
            row = {"study_id": study_id, "key": standing.TURN, "value_json": turn}
            self._put(session, models.StudySystemAttributeModel, [row])
        return True

    def count(self, study_id: int) -> int:
        return standing.count(self.read, study_id)

    def open_trials(self, study_id: int) -> tuple[int, list[Standing]]:
        return standing.open_trials(self.read, study_id)

    def last_ended(self, study_id: int, since: int, most: int) -> list[Ended]:
        return standing.last_ended(self.read, study_id, since, most)

    def outlines(self, study_id: int, numbers: Collection[int], best: int) -> list[TrialRecord]:
        return standing.outlines(self.read, study_id, numbers, best)

    def reached(self, study_id: int, epoch: int, since: int) -> list[Reach]:
        return standing.reached(self.read, study_id, epoch, since)

    def read(self, statement: sqlalchemy.Select[Any]) -> Sequence[Any]:
        """The rows of a query, without a lock."""
        with self.engine.connect() as connection:
            return connection.execution_options(**READING).execute(statement).all()

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """
        Raises:
            KeyError: there is none.
            Unreadable: it cannot be read.
        """
        self._begin_reading()
        try:
            trial = super().get_trial(trial_id)
        except KeyError:
            raise
        except UNREADABLE as error:
            raise Unreadable(_not_read(error)) from error
        if isinstance(trial, UnreadTrial):
            raise Unreadable(trial.user_attrs[ERROR])
        return trial

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Of a study. One that cannot be read is an `UnreadTrial`, and hides none of the others."""
        self._begin_reading()
        try:
            trials = super()._get_trials(
                study_id, states, included_trial_ids, trial_id_greater_than
            )
        except KeyError:
            raise
        except UNREADABLE:
            # SQLite takes a text for a time, which is found when all rows are fetched together.
            trials = self._one_by_one(study_id, included_trial_ids, trial_id_greater_than)
        # One that has not ended is failed by the worker that takes it, or finds it lost.
        unread = [t for t in trials if isinstance(t, UnreadTrial) and t.state.is_finished()]
        new = [trial for trial in unread if trial._trial_id not in self._warned_of]
        if new:
            self._warned_of.update(trial._trial_id for trial in new)
            more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
            said = new[0].user_attrs[ERROR]
            logger.warning("trial %d%s counts as failed: %s", new[0].number, more, said)
        return [trial for trial in trials if states is None or trial.state in states]

    def _one_by_one(self, study_id: int, included: set[int], after: int) -> list[FrozenTrial]:
        trials, found = models.TrialModel, []
        rows = self.read(
            sqlalchemy.select(trials.trial_id, trials.number, trials.state)
            .where(trials.study_id == study_id)
            .order_by(trials.trial_id)
        )
        for row in rows:
            if row.trial_id > after or row.trial_id in included:
                self._begin_reading()
                try:
                    found.append(super().get_trial(row.trial_id))
                except UNREADABLE as error:
                    found.append(UnreadTrial.of(row, error))
        return found

    def _build_frozen_trial_from_trial_model(self, trial: models.TrialModel) -> FrozenTrial:
        """Called by Optuna to make a trial of its rows."""
        try:
            found = super()._build_frozen_trial_from_trial_model(trial)
            _check_numbers(trial, found)
        except UNREADABLE as error:
            return UnreadTrial.of(trial, error)
        return found

    def _begin_reading(self) -> None:
        """Let what Optuna does next in this thread be without a lock."""
        session = self.scoped_session()
        if not session.in_transaction():
            session.connection(execution_options=READING)

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """Called by Optuna in the transaction of every write to a trial."""
        super().check_trial_is_updatable(trial_id, trial_state)
        token = self._token(trial_id)
        if token is not None and self._owner(self.scoped_session(), trial_id) != token:
            raise NotOwned(f"trial {trial_id} is not this worker's any more")

    def _token(self, trial_id: int) -> str | None:
        """Of who writes to a trial: the client that is served, or this process."""
        return getattr(self._caller, "token", None) or self._tokens.get(trial_id)

    def _check_own(
        self, session: Session, trial_id: int, ended_as: TrialState | None = None
    ) -> bool:
        """Lock a trial, and see that it is running and ours.

        Returns:
            Whether it has ended as we would have it.
        """
        state, owner = self._locked(session, trial_id)
        token = self._token(trial_id)
        owned = token is None or owner == token
        if state.is_finished():
            if owned and state == ended_as:
                return True
            raise UpdateFinishedTrialError(f"trial {trial_id} has ended")
        if not owned or state != TrialState.RUNNING:
            raise NotOwned(f"trial {trial_id} is not this worker's any more")
        return False

    def _locked(self, session: Session, trial_id: int) -> tuple[TrialState, str | None]:
        """The state and the owner of a trial that no other transaction changes meanwhile.

        Both rows are locked: PostgreSQL, when it has waited for a lock, reads again what it locks,
        and nothing else of the same statement.
        """
        trials = models.TrialModel
        of_trial = trials.trial_id == trial_id
        found = session.execute(
            sqlalchemy.select(trials.state, _OWNER.value_json)
            .join(_OWNER, _OF_OWNER)
            .where(of_trial)
            .with_for_update(of=[trials, _OWNER])
        ).one_or_none()
        if found is None:  # It was never anybody's.
            return session.execute(
                sqlalchemy.select(trials.state).where(of_trial).with_for_update()
            ).scalar_one(), None
        state, owner = found
        return state, _as_owner(parsed(owner))

    def _put(
        self,
        session: Session,
        model: Any,
        rows: Sequence[Mapping[str, Any]],
        replace: bool = True,
    ) -> None:
        """Insert rows, in place of those of the same key or unless there are such."""
        if not rows:
            return
        statement = _upsert(self.engine.name, model, replace)
        session.execute(statement, rows if len(rows) > 1 else rows[0])

    def _put_attributes(
        self, session: Session, trial_id: int, attributes: Mapping[str, Any]
    ) -> None:
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
        self._put(session, models.TrialUserAttributeModel, rows)

    def _owner(self, session: Session, trial_id: int) -> str | None:
        return _as_owner(self._get(session, trial_id, OWNER))

    def _get(self, session: Session, trial_id: int, key: str) -> Any:
        attribute = models.TrialUserAttributeModel
        return parsed(
            session.execute(
                sqlalchemy.select(attribute.value_json).where(
                    attribute.trial_id == trial_id, attribute.key == key
                )
            ).scalar()
        )


class UnreadTrial(FrozenTrial):
    """What stands for a trial that cannot be read among the others of its study.

    It has nothing but its number, its state, and in words why; if it has ended, it counts as failed
    for who reads it. What is stored stays as it is.
    """

    @classmethod
    def of(cls, row: Any, error: Exception) -> Self:
        return cls(
            number=row.number,
            state=TrialState.FAIL if row.state.is_finished() else row.state,
            value=None,
            datetime_start=None,
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={ERROR: _not_read(error)},
            system_attrs={},
            intermediate_values={},
            trial_id=row.trial_id,
        )


def _not_read(error: Exception) -> str:
    return f"what is stored of it cannot be read: {type(error).__name__}: {said_by(error)}"


def _check_numbers(trial: models.TrialModel, found: FrozenTrial) -> None:
    """SQLite takes a text for a number."""
    numbers = [*found.intermediate_values.values(), *(found.values or ())]
    for number in (*numbers, *(row.param_value for row in trial.params)):
        if not isinstance(number, float):
            raise TypeError(f"{number!r} is not a number")


def _left(trial: FrozenTrial, ended: datetime, lost: bool) -> dict[str, Any]:
    """The attributes of a trial that its worker has no more."""
    # Until the next worker says what it has found of them.
    epochs = len(trial.intermediate_values)
    return {OWNER: None, EARLIER_RUNS: runs_until(trial, ended, lost), EPOCHS_BEFORE: epochs}


def _as_owner(stored: object) -> str | None:
    return stored if isinstance(stored, str) else None
