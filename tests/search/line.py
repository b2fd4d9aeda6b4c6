"""Studies of one parameter, with trials that are made up."""

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.study import Study
from optuna.trial import TrialState

EPOCHS = 10
LINE = {"x": FloatDistribution(0.0, 1.0)}


def add(study: Study, state: TrialState, x: float, *reports: float) -> None:
    study.add_trial(
        optuna.create_trial(
            state=state,
            value=float(np.nanmax(reports)) if state == TrialState.COMPLETE else None,
            params={"x": x},
            distributions=dict(LINE),
            intermediate_values=dict(enumerate(reports, start=1)),
        )
    )


def complete(study: Study, x: float, value: float) -> None:
    add(study, TrialState.COMPLETE, x, *np.linspace(value / 2, value, EPOCHS))


def pruned(study: Study, x: float, *reports: float) -> None:
    add(study, TrialState.PRUNED, x, *reports)
