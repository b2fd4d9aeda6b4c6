"""What every process of a search does first: the study, and the data that it is about."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.split import TrainingData, split_for_training
from model.hyperparameters import NOTEBOOK, REFERENCE
from search.objective import check_space
from search.space import checked_point, grid, make_space, nearest, nearest_known, offers
from search.warm import plan_warm_start
from studies.config import DEFAULT_OBJECTIVE, StudyConfig
from studies.ownership import OwnedStorage
from studies.study import (
    OpenedStudy,
    check_data,
    continues,
    create_or_continue,
)

FEW_IMAGES = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study and its data, checked to belong together."""

    opened: OpenedStudy
    dataset: Dataset
    data: TrainingData
    is_new: bool


def create_from_file(
    storage: OwnedStorage, config: StudyConfig, origin: str, root: Path
) -> Prepared:
    """Create or continue the study of a study file.

    Args:
        origin: the file, named in errors.
        root: where data sets are cached.

    Raises:
        UserError: the file, the data, or an earlier study of the name do not fit together; or
            the study that it is to start from has nothing to offer.
    """
    check_space(config, origin)
    _warn_without_baseline(config)
    enqueued = first_trials(config, origin)
    warm = None
    # Before the data are read, which takes its time.
    is_there = continues(storage, config)
    # Once created it is independent of the study that it started from, which may be gone.
    if config.sampler.warm_start and not is_there:
        warm = plan_warm_start(storage, config, enqueued)
        enqueued += warm.starts
    if config.sampler.name == "grid" and not is_there:
        enqueued += grid(make_space(config.space), config.sampler.grid_points, config.seed)
    dataset = load_dataset(config.data.source, root)
    data = split_for_training(dataset, config.data.validation_fraction, config.seed)
    if not is_there and len(data.validation) < FEW_IMAGES:
        logger.warning(
            "only %d validation images choose the best trial, which is mostly chance; "
            "a larger data.validation_fraction helps",
            len(data.validation),
        )
    attributes = warm.attributes if warm else None
    opened, is_new = create_or_continue(storage, config, dataset.digest, enqueued, attributes)
    return Prepared(opened, dataset, data, is_new)


def join(opened: OpenedStudy, root: Path, source: str | None = None) -> Prepared:
    """A study that exists already with its data, by the settings that are stored in it.

    Args:
        source: where this machine has the data, if not where the study says.

    Raises:
        UserError: the data here are not those of the study.
    """
    config = opened.config
    dataset = load_dataset(source or config.data.source, root)
    check_data(opened, dataset.digest)
    data = split_for_training(dataset, config.data.validation_fraction, config.seed)
    return Prepared(opened, dataset, data, is_new=False)


def baseline_point(config: StudyConfig) -> dict[str, Any] | str:
    """Trial 0 of a study of the default objective, or why it is not the notebook's; `nearest`."""
    return nearest(make_space(config.space), NOTEBOOK)


def has_baseline(config: StudyConfig) -> bool:
    """Whether trial 0 of the study is the notebook's configuration."""
    return config.trial.objective == DEFAULT_OBJECTIVE and not isinstance(
        baseline_point(config), str
    )


def _warn_without_baseline(config: StudyConfig) -> None:
    baseline = baseline_point(config)
    if config.trial.objective == DEFAULT_OBJECTIVE and isinstance(baseline, str):
        logger.warning(
            "the notebook's configuration is not tried as a baseline: its %s, %r, is not "
            "in the search space",
            baseline,
            NOTEBOOK[baseline],
        )


def first_trials(config: StudyConfig, origin: str) -> list[dict[str, Any]]:
    """What a new study tries first: the notebook's configuration, the best that is known
    (`REFERENCE`), both as near as the space has them, and the file's `[[start]]`s.

    Each is there once, without the parameters that the space holds fixed. They are never pruned:
    a study is compared with the notebook's, and what is known to be good may begin slowly.

    Args:
        origin: the file, named in errors.

    Raises:
        UserError: a start is not in the space.
    """
    trials: list[dict[str, Any]] = []
    if config.trial.objective == DEFAULT_OBJECTIVE:
        space = make_space(config.space)
        baseline = baseline_point(config)
        if not isinstance(baseline, str):
            trials.append(baseline)
        # What the space has not of it, is the notebook's.
        reference = {**nearest_known(space, NOTEBOOK), **nearest_known(space, REFERENCE)}
        # Its learning rate means nothing to another optimizer.
        if reference not in ({}, *trials) and all(
            offers(space, name, REFERENCE[name], NOTEBOOK[name])
            for name in ("optimizer", "schedule")
        ):
            trials.append(reference)
    for start in _starts(config, origin):
        if start not in trials:
            trials.append(start)
    return trials


def _starts(config: StudyConfig, origin: str) -> Iterator[dict[str, Any]]:
    space = make_space(config.space)
    for index, values in enumerate(config.start):
        try:
            point = checked_point(space, values, f"{origin}: start.{index}.")
        except UserError as error:
            # Who narrows the space of a file with --set cannot narrow its starts so.
            raise UserError(f"{error}; correct it, or add --set 'start=[]'") from error
        varied = {name: value for name, value in point.items() if not space[name].single()}
        if not varied:
            raise UserError(f"{origin}: start.{index}: names no parameter that varies")
        yield varied
