"""A dashboard by the real command, and studies of many trials to look at there."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from playwright.sync_api import Page

from search.space import make_space
from studies.notes import note_rows
from studies.storage import parse_url
from studies.study import OpenedStudy
from tests.forked import HPSEARCH


@contextmanager
def serving(url: str, *arguments: str) -> Iterator[str]:
    """The address of a dashboard."""
    server = subprocess.Popen(
        [HPSEARCH, "dashboard", "--port", "0", *arguments],
        env={**os.environ, "HPSEARCH_STORAGE": url},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split()[0]
    finally:
        server.terminate()
        server.wait(10)


def wait_for_figures(page: Page) -> None:
    """Until the page of a study shows its trials in the dashboard's figures and in ours."""
    for name in (
        "graph-timeline",
        "graph-intermediate-values",
        "graph-hyperparameter-importances",
        "user-defined-plot:best-so-far",
        "user-defined-plot:learning-curves",
        "user-defined-plot:importance",
        "user-defined-plot:workers",
    ):
        drawn = page.locator(f'[id="{name}"] :is(.scatterlayer, .barlayer) .trace').first
        drawn.wait_for(state="attached", timeout=60_000)


def put_trials(url: str, opened: OpenedStudy, count: int) -> None:
    """Complete trials of known results, each with its note; row by row it would take long."""
    space, study_id = make_space(opened.config.space), opened.study._study_id
    rows: dict[Any, list[dict[str, Any]]] = {}
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(count):
        trial_id, begun = number + 1, datetime(2026, 1, 1) + timedelta(seconds=10 * number)
        of_trial = {"trial_id": trial_id}
        times = {"datetime_start": begun, "datetime_complete": begun + timedelta(seconds=30)}
        trial = {"number": number, "study_id": study_id, "state": TrialState.COMPLETE}
        rows.setdefault(models.TrialModel, []).append({**of_trial, **trial, **times})
        drawn = draws.ask(space)
        for name, distribution in space.items():
            value = distribution.to_internal_repr(drawn.params[name])
            stored = {"distribution_json": distribution_to_json(distribution)}
            parameter = {"param_name": name, "param_value": value, **stored}
            rows.setdefault(models.TrialParamModel, []).append({**of_trial, **parameter})
        for step in range(1, 11):
            reached = {"intermediate_value": 0.05 * step + number / 1000}
            value_of = {"step": step, **reached, "intermediate_value_type": "FINITE"}
            rows.setdefault(models.TrialIntermediateValueModel, []).append({**of_trial, **value_of})
        final = {"objective": 0, "value": 0.5 + number / 1000, "value_type": "FINITE"}
        rows.setdefault(models.TrialValueModel, []).append({**of_trial, **final})
        worker = {"key": "worker", "value_json": f'"gpu1-{number % 4}"'}
        rows.setdefault(models.TrialUserAttributeModel, []).append({**of_trial, **worker})
        for key, text in note_rows(trial_id, "Suggested by the gp sampler.").items():
            note = {"study_id": study_id, "key": key, "value_json": json.dumps(text)}
            rows.setdefault(models.StudySystemAttributeModel, []).append(note)
    engine = sqlalchemy.create_engine(parse_url(url))
    with engine.begin() as connection:
        for model, values in rows.items():
            connection.execute(sqlalchemy.insert(model.__table__), values)
    engine.dispose()
