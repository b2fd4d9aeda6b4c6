"""Training a recorded trial again: is its learning curve what it was?"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from data.errors import UserError
from data.files import DEFAULT_ROOT
from model.train import train
from model.trial import Diverged, EpochResult
from search.device import device_name, dtype_name, placed, taken_device
from search.objective import trial_context
from search.prepare import join
from studies.config import DEFAULT_OBJECTIVE
from studies.results import DEVICE, DTYPE, FALLBACKS, SEED, THREADS, record
from studies.study import VERSIONS, OpenedStudy, versions
from studies.text import readable

MOST_THREADS = 1024
"""A number of threads that is larger was not recorded by hpsearch."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replay:
    """A trial's two learning curves: validation accuracy after each epoch, in [0, 1]."""

    trial: int
    recorded: tuple[float, ...]
    replayed: tuple[float, ...]
    """Shorter, if it diverged."""
    differences: tuple[str, ...]
    """What is not as it was, and may explain another curve: device, threads, dtype, versions, what
    was done in another way than asked for; and that a GPU was not asked to be deterministic."""

    @property
    def identical(self) -> bool:
        """Bit for bit."""
        return self.recorded == self.replayed


def replay_trial(
    opened: OpenedStudy, number: int, root: Path = DEFAULT_ROOT, source: str | None = None
) -> Replay:
    """Train a trial again, with its seed and for as many epochs as it has reported.

    On a CPU with the threads that its worker had, the same versions give the same curve bit for
    bit; nothing of it is recorded.

    Args:
        root: where data sets are kept.
        source: where this machine has the data, if not where the study says.

    Raises:
        UserError: no such trial, it has reported nothing, or its objective is of the user's own.
    """
    config, name = opened.config, opened.config.name
    if config.trial.objective != DEFAULT_OBJECTIVE:
        raise UserError(
            f"study {name!r} runs {config.trial.objective!r}: only trials of "
            f"{DEFAULT_OBJECTIVE!r} can be replayed"
        )
    trials = opened.study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise UserError(f"study {name!r} has no trial {number}; it has {len(trials)}, from 0 on")
    trial = trials[number]
    recorded = record(trial).accuracies
    if not recorded or not isinstance(trial.user_attrs.get(SEED), int):
        raise UserError(f"study {name!r}: trial {number} has not finished an epoch yet")
    prepared = join(opened, root, source)
    threads = trial.user_attrs.get(THREADS)
    with taken_device(root) as device:
        if isinstance(threads, int) and 0 < threads <= MOST_THREADS and device.type == "cpu":
            torch.set_num_threads(threads)
        logger.info("trial %d again, on %s: %s", number, device, readable(trial.params))
        data = placed(prepared.data, device)
        context = trial_context(config, data, device, trial.user_attrs[SEED])
        replayed: list[float] = []
        fallbacks: tuple[str, ...] = ()
        for result in _until_it_diverges(train(trial.params, context), len(recorded)):
            replayed.append(result.validation_accuracy)
            fallbacks = result.fallbacks
        differences = tuple(_differences(opened, number, device, fallbacks))
    return Replay(number, recorded, tuple(replayed), differences)


def _until_it_diverges(results: Iterator[EpochResult], epochs: int) -> Iterator[EpochResult]:
    try:
        for result in islice(results, epochs):
            logger.info("epoch %d: %.2f%%", result.epoch, 100 * result.validation_accuracy)
            yield result
    except Diverged as error:
        logger.warning("it diverged: %s", error)


def _differences(
    opened: OpenedStudy, number: int, device: torch.device, fallbacks: Sequence[str]
) -> Iterator[str]:
    if device.type == "cuda" and not opened.config.trial.deterministic:
        yield "the study is not deterministic: a GPU may then give another curve each time"
    attributes = opened.study.get_trials(deepcopy=False)[number].user_attrs
    now = {
        DEVICE: device_name(device),
        THREADS: torch.get_num_threads(),
        FALLBACKS: ", ".join(fallbacks) or "none",
    }
    if DTYPE in attributes:  # Earlier versions of hpsearch did not record it.
        now[DTYPE] = dtype_name(opened.config.trial.precision, device)
    then = {**attributes, FALLBACKS: attributes.get(FALLBACKS) or "none"}
    for key, value in {**now, **versions()}.items():
        before = then.get(key) or opened.study.user_attrs[VERSIONS].get(key, "not recorded")
        if before != value:
            yield f"{key}: then {before}, now {value}"


def describe_replay(replay: Replay) -> str:
    """Both curves, and what they have in common, for people."""
    lines = ["epoch  recorded  replayed"]
    for epoch, before in enumerate(replay.recorded, start=1):
        after = replay.replayed[epoch - 1] if epoch <= len(replay.replayed) else None
        shown = "-" if after is None else f"{after:.2%}"
        lines.append(f"{epoch:5}  {before:>8.2%}  {shown:>8}")
    if replay.identical:
        lines.append(f"trial {replay.trial}: identical, bit for bit")
    else:
        pairs = zip(replay.recorded, replay.replayed, strict=False)
        largest = max((abs(first - second) for first, second in pairs), default=0.0)
        lines.append(
            f"trial {replay.trial}: not identical; the largest difference is "
            f"{100 * largest:.2f} points"
        )
    lines += [f"  {difference}" for difference in replay.differences]
    return "\n".join(lines)
