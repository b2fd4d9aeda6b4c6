"""How many trials: exactly as many as asked for, however many workers there are.

The rule needs no lock and no counter, only the trials themselves: the budget belongs to the first
N trials, by number, that have not failed. A trial is made as a waiting one, and taken only if it is
among these. Numbers never change and a failed trial never comes back to life, so two workers can
judge at different moments and still not run one trial too many.
"""

from collections.abc import Sequence
from enum import Enum, auto

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from data.errors import UserError
from studies.ownership import OwnedStorage
from studies.results import ERROR

MOST_FAILURES_IN_A_ROW = 10


class Turn(Enum):
    """What a worker is to do next."""

    NEW = auto()
    """Create a trial."""
    WAIT = auto()
    """All trials are taken, but one may yet fail."""
    DONE = auto()


def budgeted(trials: Sequence[FrozenTrial], limit: int | None) -> list[FrozenTrial]:
    """The trials that the budget belongs to, by number; all that have not failed if no limit."""
    alive = sorted(
        (trial for trial in trials if trial.state != TrialState.FAIL),
        key=lambda trial: trial.number,
    )
    return alive[:limit]


def next_turn(trials: Sequence[FrozenTrial], limit: int | None, may_create: bool) -> Turn:
    """Decide for a worker that found no waiting trial.

    Args:
        may_create: False for a grid, whose trials are all created beforehand.
    """
    taken = budgeted(trials, limit)
    if may_create and (limit is None or len(taken) < limit):
        return Turn.NEW
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    return Turn.WAIT if any(trial.state in unfinished for trial in taken) else Turn.DONE


def claim(study: Study, storage: OwnedStorage, limit: int | None, may_create: bool) -> Trial | Turn:
    """A trial to run, which no other worker has, or what to do instead."""
    while True:
        trials = study.get_trials(deepcopy=False)
        for trial in budgeted(trials, limit):
            free = trial.state == TrialState.WAITING or storage.may_have_taken(trial._trial_id)
            if free and storage.take(trial._trial_id):
                return Trial(study, trial._trial_id)
        turn = next_turn(trials, limit, may_create)
        if turn is not Turn.NEW:
            return turn
        # It waits for a moment: another may take it, or find that it is beyond the budget.
        waiting = create_trial(state=TrialState.WAITING)
        storage.create_new_trial(study._study_id, waiting)


def withdraw(storage: OwnedStorage, trial_id: int) -> None:
    """Let no worker take this waiting trial any more; one that has taken it keeps it."""
    if storage.take(trial_id):
        storage.set_trial_state_values(trial_id, TrialState.FAIL)


def check_failures(trials: Sequence[FrozenTrial]) -> None:
    """Stop a search in which nothing works.

    Raises:
        UserError: the last trials to end have all failed with an error of their own.
    """
    ended = [trial for trial in trials if trial.datetime_complete is not None]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    last = ended[-MOST_FAILURES_IN_A_ROW:]
    if len(last) == MOST_FAILURES_IN_A_ROW and all(
        trial.state == TrialState.FAIL and ERROR in trial.user_attrs for trial in last
    ):
        raise UserError(
            f"the last {MOST_FAILURES_IN_A_ROW} trials all failed; trial {last[-1].number}: "
            f"{last[-1].user_attrs[ERROR]}"
        )
