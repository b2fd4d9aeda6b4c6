"""How many trials: exactly as many as asked for, however many workers there are.

The rule needs no counter, only the trials themselves: the budget belongs to the first N trials, by
number, that have not failed. A waiting trial is taken only if it is among these, and a new one made
only while there are fewer, which no two workers do at once. Numbers never change and a failed trial
never comes back to life, so two workers can judge at different moments and still not run one trial
too many.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol, TypeVar

from optuna.study import Study
from optuna.trial import TrialState

from data.errors import UserError
from studies.ownership import OwnedStorage
from studies.standing import Ended, Standing

MOST_FAILURES_IN_A_ROW = 10


class Turn(Enum):
    """What a worker is to do next."""

    NEW = auto()
    """Create a trial."""
    WAIT = auto()
    """All trials are taken, but one may yet fail."""
    DONE = auto()


class Numbered(Protocol):
    """What the budget looks at of a trial."""

    @property
    def number(self) -> int: ...

    @property
    def state(self) -> TrialState: ...


AnyTrial = TypeVar("AnyTrial", bound=Numbered)


def budgeted(trials: Sequence[AnyTrial], limit: int | None) -> list[AnyTrial]:
    """The trials that the budget belongs to, by number; all that have not failed if no limit."""
    alive = sorted(
        (trial for trial in trials if trial.state != TrialState.FAIL),
        key=lambda trial: trial.number,
    )
    return alive[:limit]


def next_turn(trials: Sequence[Numbered], limit: int | None, may_create: bool) -> Turn:
    """Decide for a worker that found no waiting trial.

    Args:
        may_create: False for a grid, whose trials are all created beforehand.
    """
    taken = budgeted(trials, limit)
    if may_create and (limit is None or len(taken) < limit):
        return Turn.NEW
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    return Turn.WAIT if any(trial.state in unfinished for trial in taken) else Turn.DONE


def left_of(
    storage: OwnedStorage, study_id: int, limit: int | None
) -> tuple[list[Standing], int | None]:
    """The trials from the first that has not ended on, and what of the budget is left for them."""
    ended, trials = storage.open_trials(study_id)
    return trials, None if limit is None else max(limit - ended, 0)


def claim(study: Study, storage: OwnedStorage, limit: int | None, may_create: bool) -> int | Turn:
    """A trial to run, which no other worker has, or what to do instead.

    Returns:
        Its identity in the database: before a `Trial` is made of it, the sampler is asked, and
        that may take its time.
    """
    study_id = study._study_id
    while True:
        if storage.may_have_created() and (created := storage.create(study_id, limit)) is not None:
            return created
        trials, left = left_of(storage, study_id, limit)
        for trial in budgeted(trials, left):
            free = trial.state == TrialState.WAITING or storage.may_have_taken(trial.trial_id)
            if free and storage.take(trial.trial_id):
                return trial.trial_id
        turn = next_turn(trials, left, may_create)
        if turn is not Turn.NEW:
            return turn
        created = storage.create(study_id, limit)
        if created is not None:
            return created


def withdraw(storage: OwnedStorage, trial_id: int) -> None:
    """Let no worker take this waiting trial any more; one that has taken it keeps it."""
    if storage.take(trial_id):
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
        storage.forget(trial_id)


def check_failures(last: Sequence[Ended]) -> None:
    """Stop a search in which nothing works.

    A trial has failed with an error of its own, or because it lost more workers than it may; that
    so many did, and no other trial has ended meanwhile, is no bad luck either.

    Args:
        last: the `MOST_FAILURES_IN_A_ROW` trials that ended last, the last first.

    Raises:
        UserError: they have all failed.
    """
    if len(last) == MOST_FAILURES_IN_A_ROW and all(
        trial.state == TrialState.FAIL and trial.error is not None for trial in last
    ):
        raise UserError(
            f"the last {MOST_FAILURES_IN_A_ROW} trials all failed; trial {last[0].number}: "
            f"{last[0].error}"
        )
