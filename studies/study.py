"""Creating, opening and finding studies, with what they were created with stored in them."""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from data.errors import UserError
from studies.config import (
    DEFAULT_OBJECTIVE,
    Budget,
    StudyConfig,
    StudyName,
    differences,
    parse_study,
)
from studies.ownership import OwnedStorage
from studies.results import Summary, TrialRecord, rank, record, summarise
from studies.storage import open_storage, quiet_optuna
from studies.text import counted

CONFIG = "config"
BUDGET = "budget"
CHECKPOINTS = "checkpoints"
DATA_DIGEST = "data_digest"
IDENTITY = "identity"
VERSIONS = "versions"
WARM_START = "warm_start"
"""The name of the study that this one started from, and how much it took from there."""

METRIC = "validation accuracy"

CREATION_PATIENCE_SECONDS = 20
"""How long to wait for another process to finish creating a study."""

logger = logging.getLogger(__name__)


class WarmStartNote(BaseModel):
    """What a study keeps of the one that it started from."""

    study: StudyName
    starts: int
    trials: int


@dataclass(frozen=True, slots=True)
class OpenedStudy:
    """A study together with what is stored in it."""

    study: Study
    storage: BaseStorage
    config: StudyConfig
    """What the study was created with, but budget and checkpoints of its latest run."""
    identity: str
    """Random: two studies of the same name in different databases have different ones."""

    @property
    def records(self) -> list[TrialRecord]:
        """The trials as they are now; without `silent_since`, which is a question more."""
        return [record(trial) for trial in self.study.get_trials(deepcopy=False)]

    def records_of(self, trials: Sequence[FrozenTrial]) -> list[TrialRecord]:
        """These trials of the study, with what the database says of their hearts."""
        storage = self.storage
        silent = (
            storage.silent_trials(self.study._study_id) if isinstance(storage, OwnedStorage) else {}
        )
        return [record(trial, silent.get(trial._trial_id)) for trial in trials]

    @property
    def summary(self) -> Summary:
        """How many trials are in which state, and the best."""
        return summarise(self.records)

    def directory(self, root: Path) -> Path:
        """Where this study keeps its files, below `root`."""
        return root / f"{self.config.name}-{self.identity}"


def create_or_continue(
    storage: BaseStorage,
    config: StudyConfig,
    data_digest: str,
    enqueued: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Any] | None = None,
) -> tuple[OpenedStudy, bool]:
    """Create the study of a study file, or open it if it was created before.

    Args:
        data_digest: of the data set that this process has.
        enqueued: configurations to run first, in that order, if the study is new.
        attributes: what else to keep in the study, if it is new.

    Returns:
        The study, and whether it is new.

    Raises:
        UserError: the study was created with other settings, other data or other versions.
    """
    try:
        study = optuna.create_study(storage=storage, study_name=config.name, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError:
        opened = open_study(config.name, storage)
        check_settings(opened, config)
        check_data(opened, data_digest)
        check_versions(opened)
        before, now = (_trials(one.budget) for one in (opened.config, config))
        if before != now:
            logger.info("the budget of study %s is now %s, before %s", config.name, now, before)
        _store_what_may_change(opened.study, config)
        # What was checked, not what the database says by now.
        latest = {"budget": config.budget, "checkpoints": config.checkpoints}
        return replace(opened, config=opened.config.model_copy(update=latest)), False
    with quiet_optuna():
        study.set_metric_names([METRIC])
    identity = secrets.token_hex(4)
    study.set_user_attr(IDENTITY, identity)
    study.set_user_attr(DATA_DIGEST, data_digest)
    study.set_user_attr(VERSIONS, versions())
    _store_what_may_change(study, config)
    for key, value in (attributes or {}).items():
        study.set_user_attr(key, value)
    for parameters in enqueued:
        study.enqueue_trial(dict(parameters))
    # Last: a study that has its settings is complete, and others may use it.
    study.set_user_attr(CONFIG, config.model_dump(mode="json"))
    return OpenedStudy(study, storage, config, identity), True


def _trials(budget: Budget) -> str:
    return "any number of trials" if budget.trials is None else counted(budget.trials, "trial")


def _store_what_may_change(study: Study, config: StudyConfig) -> None:
    study.set_user_attr(BUDGET, config.budget.model_dump())
    study.set_user_attr(CHECKPOINTS, config.checkpoints.model_dump())


def open_study(name: str, storage: BaseStorage | str | None = None) -> OpenedStudy:
    """Open an existing study.

    Args:
        storage: or its URL; see `open_storage`, also for the default.

    Raises:
        UserError: there is none of that name, or it is not one of hpsearch's.
    """
    if not isinstance(storage, BaseStorage):
        storage = open_storage(storage)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        known = ", ".join(study_names(storage)) or "none"
        raise UserError(f"no study {name!r} in this storage; there: {known}") from None
    stored = _checked(_attributes_when_created(study), name)
    latest = {"budget": stored.budget, "checkpoints": stored.checkpoints}
    config = parse_study(stored.config | latest, f"study {name!r}")
    if config.name != name:
        raise UserError(
            f"study {name!r} was created as {config.name!r}, the name of its files; give it that "
            "name again (hpsearch dashboard --allow-edits)"
        )
    return OpenedStudy(study=study, storage=storage, config=config, identity=stored.identity)


class _Stored(BaseModel):
    """What every study of hpsearch's has. Others can write to the database: it is checked."""

    model_config = ConfigDict(strict=True)

    config: dict[str, Any]
    budget: dict[str, Any]
    checkpoints: dict[str, Any]
    identity: Annotated[str, StringConstraints(pattern="^[0-9a-f]{8}$")]
    """A part of a folder's name."""
    data_digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{1,128}$")]
    versions: dict[str, str]
    warm_start: WarmStartNote | None = None


def _checked(attributes: Mapping[str, Any], name: str) -> _Stored:
    try:
        return _Stored.model_validate(dict(attributes))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"study {name!r}: what is stored as its {where} was not written by hpsearch "
            f"({error.errors()[0]['msg']})"
        ) from error


def stored_config(storage: BaseStorage, name: str, overrides: Mapping[str, Any]) -> StudyConfig:
    """The settings of an existing study, to continue it without its study file.

    Args:
        overrides: dotted key to value, in place of what is stored.

    Raises:
        UserError: there is no such study, or it runs code that only the database names.
    """
    config = open_study(name, storage).config
    check_objective(config, trusted=None)
    return parse_study(config.model_dump(mode="json"), f"study {name!r}", overrides)


def check_objective(config: StudyConfig, trusted: str | None) -> None:
    """Refuse to run code that only the database names.

    Args:
        trusted: the objective of the user's own study file.

    Raises:
        UserError: the objective is neither that nor the default.
    """
    if config.trial.objective not in (DEFAULT_OBJECTIVE, trusted):
        raise UserError(
            f"study {config.name!r} runs {config.trial.objective!r}, which only the database says; "
            "give its study file instead of its name"
        )


def _attributes_when_created(study: Study) -> dict[str, Any]:
    """The study's attributes, once the process that creates it has written them all."""
    deadline = time.monotonic() + CREATION_PATIENCE_SECONDS
    while CONFIG not in (attributes := study.user_attrs):
        if IDENTITY not in attributes and study.get_trials(deepcopy=False):
            raise UserError(f"study {study.study_name!r} was not made by hpsearch")
        if time.monotonic() > deadline:
            raise UserError(
                f"study {study.study_name!r} was never completely created (its process died?); "
                "give another --name"
            )
        time.sleep(0.1)
    return attributes


def check_settings(opened: OpenedStudy, config: StudyConfig) -> None:
    """Refuse settings that are not those of the study, but for its budget and checkpoints.

    Raises:
        UserError: they differ; the message says in what.
    """
    different = differences(opened.config, config)
    if different:
        raise UserError(
            f"study {config.name!r} was created with other settings ({'; '.join(different)}); "
            "give another --name, or undo the change in the file or the options"
        )


def continues(storage: BaseStorage, config: StudyConfig) -> bool:
    """Whether there is a study of that name already.

    Raises:
        UserError: there is, with other settings; see `check_settings`.
    """
    is_there = exists(storage, config.name)
    if is_there:
        check_settings(open_study(config.name, storage), config)
    return is_there


def earlier_study(storage: BaseStorage, config: StudyConfig) -> OpenedStudy | None:
    """The study that a new one is to start from, if it names one.

    Raises:
        UserError: there is none of that name, or no trial of it is complete.
    """
    name = config.sampler.warm_start
    if name is None:
        return None
    earlier = open_study(name, storage)
    if not rank(earlier.records):
        raise UserError(
            f"study {name!r}: no trial is complete yet, so there is nothing to start from"
        )
    return earlier


def check_data(opened: OpenedStudy, data_digest: str) -> None:
    """Refuse data that are not those of the study.

    Raises:
        UserError: the digests differ.
    """
    stored = opened.study.user_attrs[DATA_DIGEST]
    if stored != data_digest:
        raise UserError(
            f"study {opened.config.name!r} was created with other data: the digest of "
            f"{opened.config.data.source} is {data_digest[:12]} here, but {stored[:12]} in the "
            "study; use the same images, or give another --name"
        )


def check_versions(opened: OpenedStudy) -> None:
    """Refuse to train for a study with other versions: accuracies would not be comparable.

    Raises:
        UserError: they differ, other than in the build (`+cpu`).
    """
    stored = opened.study.user_attrs[VERSIONS]
    different = [
        f"{package} {stored.get(package)} there, {here} here"
        for package, here in versions().items()
        if _without_build(str(stored.get(package))) != _without_build(here)
    ]
    if different:
        raise UserError(
            f"study {opened.config.name!r} was created with other versions "
            f"({'; '.join(different)}); install those, or give another --name"
        )


def _without_build(package_version: str) -> str:
    return package_version.partition("+")[0]


def started_from(opened: OpenedStudy) -> str | None:
    """A line that says from which earlier study this one started, if from any."""
    stored = opened.study.user_attrs.get(WARM_START)
    if not stored:
        return None
    if not stored["starts"]:
        return f"weighs the trials of study {stored['study']!r}"
    best = f"{stored['starts']} best" if stored["starts"] > 1 else "best"
    return f"starts from the {best} of study {stored['study']!r}"


def best_record(opened: OpenedStudy) -> TrialRecord:
    """The best trial.

    Raises:
        UserError: no trial is complete yet.
    """
    return ranked_records(opened)[0]


def ranked_records(opened: OpenedStudy) -> list[TrialRecord]:
    """The trials that can be exported, the best first.

    Raises:
        UserError: no trial is complete yet.
    """
    ranked = rank(opened.records)
    if not ranked:
        raise UserError(
            f"study {opened.config.name!r}: no trial is complete yet, so there is no model"
        )
    return ranked


def exists(storage: BaseStorage, name: str) -> bool:
    """Whether a study of that name is in the storage, complete or just being created."""
    return name in study_names(storage)


def study_names(storage: BaseStorage) -> list[str]:
    """The names of hpsearch's studies in a storage, in the order of their creation."""
    studies = storage.get_all_studies()
    return [study.study_name for study in studies if IDENTITY in study.user_attrs]


def versions() -> dict[str, str]:
    """The versions of what a trial's result depends on."""
    packages = ("hpsearch", "torch", "torchvision", "optuna")
    return {package: version(package) for package in packages}
