"""Letting a user's own configuration be tried."""

import secrets
from collections.abc import Mapping
from typing import Any

from search.budget import budgeted
from search.space import checked_point, make_space
from studies.confirmation import check_is_search
from studies.study import OpenedStudy
from studies.text import counted, readable

TOKEN = "enqueued_as"


def enqueue_trial(opened: OpenedStudy, values: Mapping[str, Any]) -> str:
    """Add a waiting trial with these parameters; the sampler chooses those not named.

    Returns:
        A line that says what was done.

    Raises:
        UserError: a name or value is not in the study's space, or the study is a confirmation.
    """
    check_is_search(opened)
    name = opened.config.name
    parameters = checked_point(make_space(opened.config.space), values)
    # A worker may take it at once, and somebody else enqueue another: it is known by its token.
    token = secrets.token_hex(8)
    opened.study.enqueue_trial(parameters, user_attrs={TOKEN: token})
    trials = opened.study.get_trials(deepcopy=False)
    new = next(trial for trial in trials if trial.user_attrs.get(TOKEN) == token)
    line = f"study {name!r}: trial {new.number} is waiting for a worker: {readable(parameters)}"
    limit = opened.config.budget.trials
    if limit and all(trial.number != new.number for trial in budgeted(trials, limit)):
        line += (
            f"; the budget of {counted(limit, 'trial')} is taken: hpsearch run {name} --trials "
            f"{len(budgeted(trials, None))} runs it"
        )
    return line
