"""All that a report says of a study, as plain data and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from statistics import median
from typing import Any

from studies.analysis import Step, Surface, importances, progress, surface, varied_parameters
from studies.config import StudyConfig
from studies.confirmation import SEARCHED, Confirmation, mentioned, shown_by
from studies.results import TrialRecord, as_json, for_json, rank, summarise
from studies.study import DATA_DIGEST, VERSIONS, OpenedStudy
from studies.timeline import (
    Cost,
    Restarts,
    ShownRun,
    WorkerTime,
    cost,
    restarts,
    timeline,
    worker_times,
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of a study at a moment."""

    config: StudyConfig
    records: Sequence[TrialRecord]
    baseline: TrialRecord | None
    """The notebook's configuration, if the study has it."""
    confirmation: Confirmation | None
    """Of this study, or what this study has shown if it is a confirming one."""
    confirms: bool
    """Whether its trials are retrainings of the best of another study."""
    versions: Mapping[str, str]
    data_digest: str
    now: datetime
    """UTC, without a time zone: until then running trials have run."""
    ranked: Sequence[TrialRecord]
    """The complete trials, best first."""
    steps: Sequence[Step]
    importances: Mapping[str, float]
    varied: Sequence[str]
    """The parameters that are not held fixed, the most important first."""
    surface: Surface | None
    """Over the two most important parameters, if that can be said; see `at_their_ends`."""
    runs: Sequence[ShownRun]
    workers: Sequence[WorkerTime]
    restarts: Restarts
    cost: Cost


def findings(opened: OpenedStudy, baseline: TrialRecord | None, now: datetime) -> Findings:
    """Read a study.

    Args:
        baseline: the trial of the notebook's configuration, if any.
        now: UTC, without a time zone.
    """
    config, attributes = opened.config, opened.study.user_attrs
    trials = opened.study.get_trials(deepcopy=False)
    records = opened.records_of(trials)
    by_importance = importances(trials, config.space)
    runs = timeline(records, now)
    first_two = tuple(list(by_importance)[:2])
    confirms = SEARCHED in attributes
    return Findings(
        config=config,
        records=records,
        baseline=baseline,
        confirmation=shown_by(opened) if confirms else mentioned(opened),
        confirms=confirms,
        versions=attributes[VERSIONS],
        data_digest=attributes[DATA_DIGEST],
        now=now,
        ranked=rank(records),
        steps=progress(records),
        importances=by_importance,
        varied=varied_parameters(config, by_importance),
        surface=surface(at_their_ends(records), config, first_two) if len(first_two) == 2 else None,
        runs=runs,
        workers=worker_times(runs),
        restarts=restarts(runs),
        cost=cost(records, config, now),
    )


def at_their_ends(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The same, with what the pruned trials might have reached, had they not been pruned.

    That is what they had reached and the median of what the complete trials gained after as many
    epochs, but no more than the best. What a trial had after one epoch says little beside what
    others had after all; a median does not follow a few that began late.
    """
    complete = rank(records)

    def at_its_end(item: TrialRecord) -> TrialRecord:
        if item.state != "pruned" or item.value is None:
            return item
        gains = [
            other.value - max(before)
            for other in complete
            if other.value is not None
            and (before := [now for now in other.accuracies[: len(item.accuracies)] if now == now])
        ]
        if not gains:
            return item
        best = max(item.value, complete[0].value or 0.0)
        return replace(item, value=min(item.value + median(gains), best))

    return [at_its_end(item) for item in records]


def as_document(found: Findings, top: int) -> dict[str, Any]:
    """All numbers of the report's figures and tables, for `json.dumps`.

    See the dataclasses for the meaning of each key.

    Args:
        top: how many of the best trials.
    """
    document = {
        "study": found.config.name,
        "made": found.now,
        **as_json(summarise(found.records), found.ranked[:top]),
        "baseline": found.baseline.number if found.baseline else None,
        "confirmation": asdict(found.confirmation) if found.confirmation else None,
        "progress": [asdict(step) for step in found.steps],
        "importances": dict(found.importances),
        "pair": asdict(found.surface) if found.surface else None,
        "timeline": [asdict(run) for run in found.runs],
        "workers": [asdict(worker) for worker in found.workers],
        "restarts": asdict(found.restarts),
        "cost": asdict(found.cost),
        "trials": [asdict(item) for item in found.records],
        "config": found.config.model_dump(mode="json"),
        "versions": dict(found.versions),
        "data_digest": found.data_digest,
    }
    cleaned: dict[str, Any] = for_json(document)
    return cleaned
