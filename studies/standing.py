"""What workers ask of a study between epochs, in SQL: not the whole study for one column of it.

Optuna reads every trial whole when a process first asks for any, and goes through all of them each
time that a trial is created, judged or told. Each of these questions takes the database a few
milliseconds in a study of 10,000 trials, but the first of `reached` in a process half a second.
What they mean is said in `studies.ownership.OwnedStorage`.
"""

import json
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import and_, func, select

from studies.results import ERROR, LONGEST_ATTRIBUTE, STATE_NAMES, TrialRecord
from studies.text import shortened

UNREADABLE = (ValueError, LookupError, TypeError, ArithmeticError, AssertionError, RecursionError)
"""What Optuna raises of a row that is not as it writes them."""

UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
SUCCESSFUL = (TrialState.COMPLETE, TrialState.PRUNED)

TURN = "hpsearch:drawn"
"""Of the study: when its figures were drawn, and how many trials had ended by then."""

Read = Callable[[sqlalchemy.Select[Any]], Sequence[Any]]
"""Gives the rows of a query."""

_trials = models.TrialModel


class Standing(NamedTuple):
    """Where a trial stands."""

    trial_id: int
    number: int
    state: TrialState


class Ended(NamedTuple):
    """How a trial ended."""

    number: int
    state: TrialState
    error: str | None
    """Of a trial that failed with an error of its own."""


class Reach(NamedTuple):
    """What a trial had reached by an epoch."""

    trial_id: int
    has_ended: bool
    reports: int
    """How many it has made by then."""
    best: float | None
    """The best of those that are finite; None if none is."""


def count(read: Read, study_id: int) -> int:
    ((found,),) = read(select(func.count()).where(_trials.study_id == study_id))
    return int(found)


def open_trials(read: Read, study_id: int) -> tuple[int, list[Standing]]:
    of_study = _trials.study_id == study_id
    ((first,),) = read(
        select(func.min(_trials.trial_id)).where(of_study, _trials.state.in_(UNFINISHED))
    )
    before = and_(of_study, _trials.state.in_(SUCCESSFUL))
    if first is not None:
        before = and_(before, _trials.trial_id < first)
    # What has ended stays as it is: between the queries the trials before the first do not change.
    ((ended,),) = read(select(func.count()).where(before))
    if first is None:
        return int(ended), []
    rows = read(
        select(_trials.trial_id, _trials.number, _trials.state)
        .where(of_study, _trials.trial_id >= first)
        .order_by(_trials.number)
    )
    return int(ended), [Standing(*row) for row in rows]


def outlines(read: Read, study_id: int, numbers: Collection[int], best: int) -> list[TrialRecord]:
    values = models.TrialValueModel
    columns = select(_trials.number, _trials.state, values.value).outerjoin(
        values, values.trial_id == _trials.trial_id
    )
    of_study = columns.where(_trials.study_id == study_id)
    complete = of_study.where(_trials.state == TrialState.COMPLETE)
    rows = [
        *read(of_study.where(_trials.number.in_(numbers))),
        *read(complete.order_by(values.value.desc().nulls_last(), _trials.number).limit(best)),
    ]
    return [
        outline(number, STATE_NAMES[state], _number(value))
        for number, state, value in {row.number: row for row in rows}.values()
    ]


def outline(number: int, state: str, value: float | None) -> TrialRecord:
    """Of a trial, what decides whether its checkpoint is kept."""
    return TrialRecord(number, state, {}, (), value, None, None, None, None, None)


def last_ended(read: Read, study_id: int, since: int, most: int) -> list[Ended]:
    errors = models.TrialUserAttributeModel
    of_it = and_(errors.trial_id == _trials.trial_id, errors.key == ERROR)
    ended = _trials._datetime_complete_utc
    rows = read(
        select(_trials.number, _trials.state, errors.value_json)
        .outerjoin(errors, of_it)
        .where(_trials.study_id == study_id, _trials.number >= since, ended.is_not(None))
        .order_by(ended.desc(), _trials.number.desc())
        .limit(most)
    )
    return [
        Ended(
            number,
            state,
            None if error is None else shortened(str(parsed(error)), LONGEST_ATTRIBUTE),
        )
        for number, state, error in rows
    ]


def reached(read: Read, study_id: int, epoch: int, since: int) -> list[Reach]:
    reports = models.TrialIntermediateValueModel
    finite = reports.TrialIntermediateValueType.FINITE
    best = func.max(
        sqlalchemy.case((reports.intermediate_value_type == finite, reports.intermediate_value))
    )
    rows = read(
        select(_trials.trial_id, _trials.state, func.count(reports.step), best)
        .outerjoin(reports, and_(reports.trial_id == _trials.trial_id, reports.step <= epoch))
        .where(_trials.study_id == study_id, _trials.trial_id >= since)
        .group_by(_trials.trial_id, _trials.state)
        .order_by(_trials.trial_id)
    )
    return [
        Reach(trial_id, state.is_finished(), reported, _number(value))
        for trial_id, state, reported, value in rows
    ]


def _number(stored: object) -> float | None:
    """None for a text, which SQLite takes for a number."""
    return stored if isinstance(stored, float) else None


def parsed(stored: str | None) -> Any:
    """None also if it is no JSON: whoever can write to the database may have stored anything."""
    try:
        return None if stored is None else json.loads(stored)
    except UNREADABLE:
        return None


def last_turn(study_id: int, clock: Any) -> sqlalchemy.Select[Any]:
    """What `next_turn` judges by.

    Args:
        clock: the database's.
    """
    attribute = models.StudySystemAttributeModel
    ended = select(func.count()).where(
        _trials.study_id == study_id, _trials.state.not_in(UNFINISHED)
    )
    stored = select(attribute.value_json).where(
        attribute.study_id == study_id, attribute.key == TURN
    )
    return select(clock, ended.scalar_subquery(), stored.scalar_subquery())


def next_turn(now: datetime, ended: int, stored: str | None, pause_seconds: float) -> str | None:
    """What is to be stored by who draws the study now; None if it is not to be drawn yet.

    Args:
        ended: how many trials have.
        stored: by who drew it last. What else it may be, as somebody has written it, counts not.
    """
    try:
        last = json.loads(stored or "null")
        passed = (now - datetime.fromisoformat(last["at"])).total_seconds()
        before = last["ended"]
    except (LookupError, TypeError, ValueError):
        passed, before = pause_seconds, 0
    if ended == before or 0 <= passed < pause_seconds:
        return None
    return json.dumps({"at": now.isoformat(), "ended": ended})
