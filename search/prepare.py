"""What every process of a search does first: the study, and the data that it is about."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage

from data.dataset import Dataset, load_dataset
from data.split import TrainingData, split_for_training
from model.train import NOTEBOOK
from search.objective import check_space
from search.space import grid, make_space, nearest
from search.warm import plan_warm_start
from studies.config import DEFAULT_OBJECTIVE, StudyConfig
from studies.study import OpenedStudy, check_data, create_or_continue, exists, open_study

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study and its data, checked to belong together."""

    opened: OpenedStudy
    dataset: Dataset
    data: TrainingData
    is_new: bool


def create_from_file(storage: RDBStorage, config: StudyConfig, origin: str, root: Path) -> Prepared:
    """Create or continue the study of a study file.

    Args:
        origin: the file, named in errors.
        root: where data sets are cached.

    Raises:
        UserError: the file, the data, or an earlier study of the name do not fit together; or
            the study that it is to start from has nothing to offer.
    """
    check_space(config, origin)
    warm = None
    # Once created it is independent of the study that it started from, which may be gone.
    if config.sampler.warm_start and not exists(storage, config.name):
        is_default = config.trial.objective == DEFAULT_OBJECTIVE
        warm = plan_warm_start(storage, config, baseline_point(config) if is_default else None)
    enqueued = first_trials(config, warm.starts if warm else ())
    dataset = load_dataset(config.data.source, root)
    data = split_for_training(dataset, config.data.validation_fraction, config.seed)
    attributes = warm.attributes if warm else None
    opened, is_new = create_or_continue(storage, config, dataset.digest, enqueued, attributes)
    return Prepared(opened, dataset, data, is_new)


def join(storage: RDBStorage, name: str, root: Path, source: str | None = None) -> Prepared:
    """Open a study that exists already, with the settings that are stored in it.

    Args:
        source: where this machine has the data, if not where the study says.

    Raises:
        UserError: no such study, or the data here are not those of the study.
    """
    opened = open_study(storage, name)
    config = opened.config
    dataset = load_dataset(source or config.data.source, root)
    check_data(opened, dataset.digest)
    data = split_for_training(dataset, config.data.validation_fraction, config.seed)
    return Prepared(opened, dataset, data, is_new=False)


def baseline_point(config: StudyConfig) -> dict[str, Any] | str:
    """Trial 0 of a study of the default objective, or why it is not the notebook's; `nearest`."""
    return nearest(make_space(config.space), NOTEBOOK)


def first_trials(
    config: StudyConfig, starts: Sequence[Mapping[str, Any]] = ()
) -> list[Mapping[str, Any]]:
    """What a new study tries first: the notebook's configuration, and all points of a grid.

    Args:
        starts: the best configurations of an earlier study, which come after the notebook's.
    """
    space = make_space(config.space)
    trials: list[Mapping[str, Any]] = []
    if config.trial.objective == DEFAULT_OBJECTIVE:
        baseline = baseline_point(config)
        if isinstance(baseline, str):
            logger.warning(
                "the notebook's configuration is not tried as a baseline: its %s, %r, is not "
                "in the search space",
                baseline,
                NOTEBOOK[baseline],
            )
        else:
            trials.append(baseline)
    trials += starts
    if config.sampler.name == "grid":
        trials += grid(space, config.sampler.grid_points, config.seed)
    return trials
