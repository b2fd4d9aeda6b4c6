"""One trial: its parameters in, epochs out, each reported, the best kept, the hopeless pruned."""

import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from data.errors import UserError
from data.split import TrainingData
from model.trial import Diverged, EpochResult, TrialContext
from search.broken import WorkerBroken, is_broken
from search.reports import Reports
from search.saver import Saver
from search.space import Space, examples
from search.stop import Stopped, StopRequest
from search.tensorboard import TrialLog
from studies.checkpoints import CheckpointDirectory, Resumable
from studies.config import DEFAULT_OBJECTIVE, Range, StudyConfig
from studies.patience import Patience, StorageLost, Unreachable
from studies.results import BEST_EPOCH, FALLBACKS, IMAGES_PER_SECOND
from studies.text import without_passwords

Objective = Callable[[Mapping[str, Any], TrialContext], Iterator[EpochResult]]

LONGEST_REASON = 500  # characters

logger = logging.getLogger(__name__)


class End(Enum):
    """How a trial ended. The five stay distinct: nothing is quietly turned into another."""

    COMPLETE = auto()
    PRUNED = auto()
    DIVERGED = auto()
    FAILED = auto()
    INTERRUPTED = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    end: End
    accuracies: tuple[float, ...]
    """Validation accuracy after each epoch, in [0, 1]."""
    reason: str | None = None
    """Why it diverged or failed."""

    @property
    def best(self) -> float | None:
        """The best of the accuracies that are numbers (not NaN), if any is."""
        numbers = (accuracy for accuracy in self.accuracies if not math.isnan(accuracy))
        return max(numbers, default=None)


class CheckpointsLost(StorageLost):
    """What a trial was to go on from could not be reached for too long; it is as it was."""


@dataclass(frozen=True, slots=True)
class Run:
    """All that one trial is run with."""

    number: int
    parameters: Mapping[str, Any]
    objective: Objective
    context: TrialContext
    checkpoints: CheckpointDirectory
    stop: StopRequest
    reports: Reports
    is_ours: Callable[[], bool]
    """See `Saver`."""
    patience: Patience
    """With the place of the checkpoints, when the trial is to go on."""
    log: TrialLog
    is_new: bool = False
    """Whether no worker has had it before: there is nothing to go on from."""
    may_prune: bool = True
    """False for a trial that is to be complete, whatever the pruner says."""


def load_objective(name: str) -> Objective:
    """Import `package.module:function`; the current folder is searched last.

    Raises:
        UserError: there is no such function.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        objective = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"trial.objective {name!r}: cannot be imported ({error})") from error
    if not callable(objective):
        raise UserError(f"trial.objective {name!r}: not a function")
    found: Objective = objective
    return found


def check_space(config: StudyConfig, origin: str) -> None:
    """Check the names and values in `[space]` for the default objective.

    Raises:
        UserError: a name is unknown to it, or a choice or bound impossible.
    """
    if config.trial.objective != DEFAULT_OBJECTIVE:
        return
    from model.hyperparameters import FRACTIONAL, parse_hyperparameters

    for name in FRACTIONAL & config.space.keys():
        parameter = config.space[name]
        if isinstance(parameter, Range) and parameter.is_whole:
            raise UserError(
                f"{origin}: space.{name}: between whole numbers only whole numbers are tried; "
                f"write low = {parameter.low}.0 and high = {parameter.high}.0"
            )
    for name, value in examples(config.space):
        try:
            parse_hyperparameters({name: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"{origin}: space.{name}: {error}") from error


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Ask for a value of every parameter; those that a trial has already stay as they are."""
    parameters: dict[str, Any] = {}
    for name, item in space.items():
        if isinstance(item, CategoricalDistribution):
            parameters[name] = trial.suggest_categorical(name, item.choices)
        elif isinstance(item, IntDistribution):
            parameters[name] = trial.suggest_int(name, item.low, item.high, log=item.log)
        elif isinstance(item, FloatDistribution):
            parameters[name] = trial.suggest_float(name, item.low, item.high, log=item.log)
    return parameters


def trial_context(
    config: StudyConfig, data: TrainingData, device: torch.device, seed: int
) -> TrialContext:
    """What a trial of a study is given, on data that are on the device (or in the host's memory).

    Args:
        seed: of the trial.
    """
    return TrialContext(
        data=data,
        device=device,
        epochs=config.trial.epochs,
        seed=seed,
        precision=config.trial.precision,
        deterministic=config.trial.deterministic,
        compile=config.trial.compile,
    )


def run_trial(run: Run) -> Outcome:
    """Train one trial and report each epoch; what becomes of the trial is for the caller to tell.

    One that was interrupted goes on after its last epoch, if its checkpoints are here; a place that
    does not answer is waited for. While the database does not answer the trial is trained on, and
    judged and reported later.

    Raises:
        NotOwned: the trial is another worker's by now.
        CheckpointsLost: their place has not answered for too long, or there is no time to wait.
        StorageLost: the database has not answered for too long.
        WorkerBroken: what the objective raised is no fault of the trial's. What was reported and
            written of it stays.
        Exception: of the storage. What else the objective raises is an outcome, not an exception.
    """
    with Saver(
        run.checkpoints, run.number, run.is_ours, may_wait=lambda: not run.stop.is_over
    ) as saver:
        outcome = _run_epochs(run, saver)
        run.reports.deliver_all()
        if outcome.end is End.COMPLETE:
            # Nobody would train these weights again.
            saver.finish()
        else:
            saver.write()
    if outcome.end is not End.INTERRUPTED:
        run.log.end(outcome.best)
    return outcome


def _left_behind(run: Run) -> tuple[Resumable | None, float]:
    """Where a trial can be taken up again, and the accuracy of its weights there."""
    if run.is_new:
        return None, -1.0

    def read(give_up: bool = False) -> tuple[Resumable | None, float]:
        resumable = run.checkpoints.load_state(run.number, give_up, run.reports.reported)
        if resumable is None:
            return None, -1.0
        numbers = [one for one in resumable.accuracies if not math.isnan(one)]
        best = max(numbers, default=-1.0)
        return resumable, run.checkpoints.accuracy_of(run.number, best, give_up)

    try:
        with run.stop.interruptible():
            try:
                return run.patience.call(read, lambda: not run.stop.requested)
            except StorageLost:
                if run.stop.requested:
                    raise
                # One bad block must not stop whoever takes the trial: what is there and cannot be
                # read for so long never will be.
                return read(give_up=True)
    except (StorageLost, Unreachable) as error:
        raise CheckpointsLost(str(error)) from error
    except Stopped as error:
        raise CheckpointsLost("the checkpoints have not been read yet") from error


def _run_epochs(run: Run, saver: Saver) -> Outcome:
    number, context, stop, reports = run.number, run.context, run.stop, run.reports
    accuracies: list[float] = []
    resumable, kept = _left_behind(run)  # The accuracy of the weights on the disk, or on the way.
    if resumable is None and reports.resumes:
        reports.goes_on_after(0)
    if resumable:
        accuracies.extend(resumable.accuracies)
        context = replace(context, resume=resumable.state)
        logger.info("trial %d: goes on after epoch %d", number, len(accuracies))
        reports.goes_on_after(len(accuracies))
        # Its last worker may have died before it could say so.
        for epoch, accuracy in enumerate(accuracies, start=1):
            reports.accuracy(epoch, accuracy)
        del resumable  # As large as the model and its optimizer.
    before = len(accuracies)
    run.log.begin(context, before)
    epochs: Iterator[EpochResult] | None = None
    while len(accuracies) < context.epochs:
        try:
            with stop.interruptible():
                epochs = epochs or run.objective(run.parameters, context)
                result = next(epochs)
        except Stopped:
            return Outcome(End.INTERRUPTED, tuple(accuracies))
        except StopIteration:
            reason = f"the objective ended after {len(accuracies)} of {context.epochs} epochs"
            return Outcome(End.FAILED, tuple(accuracies), reason)
        except Diverged as error:
            return Outcome(
                End.DIVERGED, tuple(accuracies), without_passwords(str(error))[:LONGEST_REASON]
            )
        except Exception as error:
            if is_broken(error):
                # Nor is what is pending said: of a trial that begins anew, it would remove epochs.
                logger.warning("trial %d: this worker is broken", number, exc_info=True)
                what = without_passwords(f"{type(error).__name__}: {error}").splitlines()[0]
                raise WorkerBroken(what[:LONGEST_REASON], len(accuracies) > before) from error
            if context.resume is not None:
                # The state may be of another device, or of another version.
                logger.warning("trial %d begins anew", number, exc_info=True)
                context, epochs, accuracies, kept = replace(context, resume=None), None, [], -1.0
                before = 0
                reports.goes_on_after(0)
                continue
            logger.warning("trial %d raised", number, exc_info=True)
            reason = without_passwords(f"{type(error).__name__}: {error}")
            return Outcome(End.FAILED, tuple(accuracies), reason[:LONGEST_REASON])
        if result.epoch != len(accuracies) + 1:
            reason = f"the objective yielded epoch {result.epoch}, not {len(accuracies) + 1}"
            return Outcome(End.FAILED, tuple(accuracies), reason)
        if context.resume is not None:
            context = replace(context, resume=None)
        accuracy = result.validation_accuracy
        accuracies.append(accuracy)
        best, last = accuracy > kept, len(accuracies) == context.epochs
        reports.attribute(IMAGES_PER_SECOND, round(result.images_per_second))
        if result.fallbacks:
            reports.attribute(FALLBACKS, ", ".join(result.fallbacks))
        if best:
            kept = accuracy
            reports.attribute(BEST_EPOCH, result.epoch)
        reports.accuracy(result.epoch, accuracy)
        saver.keep(result, best, None if last else tuple(accuracies))
        # In this order: if the trial is another worker's by now, nothing of it is touched.
        if reports.deliver():
            saver.write()
        run.log.epoch(result)
        logger.info(
            "trial %d: epoch %d of %d, validation accuracy %.2f%%, loss %.4f, %.0f images/s",
            number,
            result.epoch,
            context.epochs,
            100 * accuracy,
            result.training_loss,
            result.images_per_second,
        )
        if last:
            break
        # The pruner is asked in any case: it may take note of who reached an epoch.
        if reports.is_hopeless(result.epoch) and run.may_prune:
            return Outcome(End.PRUNED, tuple(accuracies))
        if stop.requested:
            return Outcome(End.INTERRUPTED, tuple(accuracies))
    if all(map(math.isnan, accuracies)):
        reason = "the validation accuracy of no epoch is a number"
        return Outcome(End.DIVERGED, tuple(accuracies), reason)
    return Outcome(End.COMPLETE, tuple(accuracies))
