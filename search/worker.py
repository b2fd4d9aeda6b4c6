"""One worker: claim a trial, run it, tell the study, until the budget is spent."""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial, TrialState

from data.split import TrainingData
from model.memory import give_back
from model.trial import TrialContext
from search.broken import WorkerBroken
from search.budget import MOST_FAILURES_IN_A_ROW, Turn, check_failures, claim
from search.device import device_name, dtype_name
from search.draw import draw, drawn_now_and_then
from search.enqueue import TOKEN
from search.lost import LostTrials
from search.objective import (
    CheckpointsLost,
    End,
    Objective,
    Outcome,
    Run,
    run_trial,
    suggest,
    trial_context,
)
from search.prepare import first_trials, has_baseline
from search.pruners import Reached
from search.reports import Reports
from search.samplers import derived_seed, make_pruner, make_sampler
from search.space import ENQUEUED, make_space, misfit
from search.stop import StopRequest
from search.tensorboard import TrialLog
from search.warm import earlier_trials
from studies.checkpoints import CheckpointDirectory
from studies.config import DEFAULT_OBJECTIVE
from studies.notes import quoted, trial_note
from studies.ownership import NotOwned, OwnedStorage, Unreadable
from studies.patience import CHECKPOINTS, STORAGE_ERRORS, Patience, reason
from studies.results import DEVICE, DIVERGED, DTYPE, EARLIER_RUNS, ERROR, SEED, THREADS
from studies.standing import UNREADABLE
from studies.storage import HEARTBEAT_SECONDS, quiet_optuna, storage_failure
from studies.study import OpenedStudy
from studies.text import readable

POLL_SECONDS = 1.0
"""Between looks at the study while all trials are taken."""
HEARTBEAT_AGAIN_SECONDS = 2.0
LONGEST_JOIN_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """All that a worker needs; its methods are the steps of its loop."""

    opened: OpenedStudy
    storage: OwnedStorage
    objective: Objective
    data: TrainingData
    """On `device`, if they fit there."""
    device: torch.device
    checkpoints: CheckpointDirectory
    stop: StopRequest
    patience: Patience
    lost_trials: LostTrials
    deadline: float | None
    """On the clock `time.time`: no trial is started after it."""
    tensorboard: Path | None = None
    """Where trials leave what TensorBoard shows."""

    def work(self) -> None:
        """Run trials until the budget is spent or the worker is asked to stop.

        Raises:
            UserError: trial after trial fails.
            StorageLost: the database, or the checkpoints' place, has not answered for too long.
            WorkerBroken: no trial can be run in this process any more; the one that it had is for
                another.
        """
        config, study = self.opened.config, self.opened.study
        seed = derived_seed(config.seed, socket.gethostname(), os.getpid(), time.time_ns())
        earlier = self.patience.call(lambda: earlier_trials(self.opened))
        study.sampler = make_sampler(config.sampler, seed, config.trial.epochs, earlier)
        study.pruner = make_pruner(
            config.pruner, config.trial.epochs, Reached(self.storage, study._study_id)
        )
        trials_before = self.patience.call(lambda: self.storage.count(study._study_id))
        shown = partial(draw, self.opened, self.storage, self.checkpoints)
        with drawn_now_and_then(shown, self._may_wait):
            self._work_until_done(trials_before)

    def _work_until_done(self, trials_before: int) -> None:
        has_trained = False
        while not self.stop.requested:
            if self.deadline is not None and time.time() >= self.deadline:
                logger.info("the time is up")
                return
            claimed = self.patience.call(lambda: self._next(trials_before), self._may_wait)
            if claimed is Turn.WAIT:
                time.sleep(POLL_SECONDS)
            elif isinstance(claimed, Turn):
                return
            else:
                try:
                    has_trained = self._have(claimed) or has_trained
                except WorkerBroken as error:
                    error.has_trained = error.has_trained or has_trained
                    raise

    def _next(self, trials_before: int) -> int | Turn:
        config, study = self.opened.config, self.opened.study
        with quiet_optuna():
            self.lost_trials.take_back()
            check_failures(
                self.storage.last_ended(study._study_id, trials_before, MOST_FAILURES_IN_A_ROW)
            )
            may_create = config.sampler.name != "grid"
            return claim(study, self.storage, config.budget.trials, may_create)

    def _may_wait(self) -> bool:
        """Whether there is time to wait for the database."""
        return not self.stop.requested

    def _have(self, trial_id: int) -> bool:
        """Run a trial that was claimed. From here on its heart beats.

        Returns:
            Whether it has come to an epoch.
        """
        name, has_trained = f"the trial of identity {trial_id}", False
        try:
            with (
                beating_heart(self.storage, trial_id, self.lost_trials, self.patience),
                self._left_to_others(trial_id),
            ):
                trial = self.patience.call(lambda: self._trial(trial_id), self._may_wait)
                name = f"trial {trial.number}"
                has_trained = self._run(trial)
        except (NotOwned, optuna.exceptions.UpdateFinishedTrialError):
            # Its heartbeat stopped for too long, for instance while a laptop was asleep.
            logger.warning("%s: this worker was taken for dead and has it no longer", name)
        finally:
            self.storage.forget(trial_id)
        return has_trained

    @contextmanager
    def _left_to_others(self, trial_id: int) -> Iterator[None]:
        """Leave a trial that was claimed as it should be if what is stored cannot be read."""
        try:
            yield
        except Unreadable as error:
            most_losses = self.opened.config.trial.max_retries
            why = "its worker could not read it"
            lost = partial(self.storage.give_up, trial_id, most_losses, why)
            self.patience.call(lost, self._may_wait)
            logger.error("the trial of identity %d is given up: %s", trial_id, error)
        except UNREADABLE as error:
            # Of the study, which a sampler or pruner reads, and not of this trial.
            if storage_failure(error) is not None:
                with suppress(NotOwned, optuna.exceptions.UpdateFinishedTrialError):
                    self.patience.call(lambda: self.storage.hand_back(trial_id), self._may_wait)
                    logger.warning("the trial of identity %d: handed back as it was", trial_id)
            raise

    def _trial(self, trial_id: int) -> Trial:
        """To make one, a sampler may read the whole study, as Optuna's for a grid does."""
        with quiet_optuna():
            return Trial(self.opened.study, trial_id)

    def _run(self, trial: Trial) -> bool:
        # Once asked to stop, what there is to say is still said within the grace period.
        def may_wait() -> bool:
            return not self.stop.is_over

        config = self.opened.config
        refused = misfit(make_space(config.space), trial._cached_frozen_trial)
        if refused is not None:
            self._refuse(trial, refused, may_wait)
            return False
        reports = Reports(
            trial,
            partial(self.storage.report, trial._trial_id),
            self.patience,
            may_wait,
            lambda: self.storage.holds(trial._trial_id),
        )
        parameters, context = self.patience.call(lambda: self._begin(trial, reports), may_wait)
        reports.deliver_all()
        is_first = trial.number < len(first_trials(config, config.name))
        run = Run(
            number=trial.number,
            parameters=parameters,
            objective=self.objective,
            context=context,
            checkpoints=self.checkpoints,
            stop=self.stop,
            reports=reports,
            is_ours=lambda: self._is_ours(trial._trial_id),
            patience=Patience(self.patience.seconds, of=CHECKPOINTS),
            log=TrialLog(
                self.tensorboard,
                trial.number,
                parameters,
                config.trial.objective == DEFAULT_OBJECTIVE,
            ),
            is_new=EARLIER_RUNS not in trial.user_attrs,
            # A configuration of the user's own is one whose result is wanted.
            may_prune=not is_first and TOKEN not in trial.user_attrs,
        )
        try:
            outcome = run_trial(run)
        except CheckpointsLost:
            # Another worker may reach them.
            self.patience.call(lambda: self.storage.hand_back(trial._trial_id), may_wait)
            logger.warning("trial %d: handed back as it was", trial.number)
            raise
        except WorkerBroken as error:
            lost = partial(
                self.storage.give_up, trial._trial_id, config.trial.max_retries, str(error)
            )
            self.patience.call(lost, may_wait)
            raise
        if outcome.reason is not None:
            key = DIVERGED if outcome.end is End.DIVERGED else ERROR
            reports.attribute(key, outcome.reason)
            reports.deliver_all()
        origin = self._origin(trial, is_first)
        self.patience.call(lambda: self._tell(trial, outcome, origin), may_wait)
        if outcome.end is End.FAILED:
            give_back(self.device)
        # It may take a minute, if the checkpoints' place does not answer; the next one does it.
        if outcome.end is not End.INTERRUPTED and not self.stop.is_over:
            self.patience.call(self._tidy, may_wait)
        return bool(outcome.accuracies)

    def _refuse(self, trial: Trial, why: str, may_wait: Callable[[], bool]) -> None:
        trial_id, failed = trial._trial_id, f"**Failed**: {quoted(why)}."
        self.patience.call(lambda: self.storage.report(trial_id, {}, {ERROR: why}, {}), may_wait)
        self.patience.call(
            lambda: self.storage.end(trial_id, TrialState.FAIL, note=failed), may_wait
        )
        logger.error("trial %d: failed: %s", trial.number, why)

    def _is_ours(self, trial_id: int) -> bool:
        # Training would stand still while each file waits for a database that does not answer.
        ask = self.storage.holds if self.patience.trouble else self.storage.is_ours
        return ask(trial_id)

    def _begin(self, trial: Trial, reports: Reports) -> tuple[dict[str, Any], TrialContext]:
        config = self.opened.config
        # A retraining was given its seed when it was enqueued.
        seed = trial.user_attrs.get(SEED, derived_seed(config.seed, trial.number))
        reports.attribute(SEED, seed)
        ran_on = {DEVICE: device_name(self.device), THREADS: torch.get_num_threads()}
        # Of a trial that an earlier version has begun, it is not known.
        is_known = DTYPE in trial.user_attrs or DEVICE not in trial.user_attrs
        if config.trial.objective == DEFAULT_OBJECTIVE and is_known:
            ran_on[DTYPE] = dtype_name(config.trial.precision, self.device)
        for key, value in ran_on.items():
            before = trial.user_attrs.get(key, value)
            # A curve of two devices is not to be taken for one of either.
            last = str(before).rpartition(", then ")[2]
            both = reports.resumes and last != str(value)
            stays = before if reports.resumes else value
            reports.attribute(key, f"{before}, then {value}" if both else stays)
        with reports.parameters():
            parameters = suggest(trial, make_space(config.space))
        logger.info("trial %d: %s", trial.number, readable(parameters))
        return parameters, trial_context(config, self.data, self.device, seed)

    def _origin(self, trial: Trial, is_first: bool) -> str:
        """Where the trial's parameters come from, in words.

        Args:
            is_first: whether it is one of `first_trials`.
        """
        config = self.opened.config
        if TOKEN in trial.user_attrs:
            return "asked for with hpsearch enqueue"
        if trial.number == 0 and has_baseline(config):
            return "the notebook's configuration, with which the others are compared"
        if is_first:
            return "known to be good elsewhere, and tried before the search"
        if config.sampler.name == "grid":
            return "a point of the grid"
        if config.sampler.warm_start and ENQUEUED in trial._cached_frozen_trial.system_attrs:
            return f"one of the best of study {quoted(config.sampler.warm_start)}"
        return f"suggested by the {config.sampler.name} sampler"

    def _tidy(self) -> None:
        """Remove the checkpoints that are of no more use."""
        study_id, keep = self.opened.study._study_id, self.opened.config.checkpoints.keep
        self.checkpoints.tidy(partial(self.storage.outlines, study_id, best=keep), keep)

    def _tell(self, trial: Trial, outcome: Outcome, origin: str) -> None:
        number = trial.number
        best = math.nan if outcome.best is None else outcome.best
        epochs = len(outcome.accuracies)
        if outcome.end is End.COMPLETE:
            self._end(trial, TrialState.COMPLETE, outcome.best, outcome.end, origin)
            logger.info("trial %d: complete, best validation accuracy %.2f%%", number, 100 * best)
        elif outcome.end is End.PRUNED:
            self._end(trial, TrialState.PRUNED, outcome.accuracies[-1], outcome.end, origin)
            logger.info("trial %d: pruned after epoch %d, best %.2f%%", number, epochs, 100 * best)
        elif outcome.end is End.DIVERGED:
            # In Optuna's terms pruned: it was stopped early and the search can learn from it.
            last = outcome.accuracies[-1] if outcome.accuracies else None
            self._end(trial, TrialState.PRUNED, last, outcome.end, origin)
            logger.info("trial %d: diverged: %s", number, outcome.reason)
        elif outcome.end is End.FAILED:
            self._end(trial, TrialState.FAIL, None, outcome.end, origin)
            logger.error("trial %d: failed: %s", number, outcome.reason)
        else:
            self.storage.hand_back(trial._trial_id)
            logger.info("trial %d: interrupted after epoch %d, handed back", number, epochs)

    def _end(
        self, trial: Trial, state: TrialState, value: float | None, end: End, origin: str
    ) -> None:
        """As `Study.tell`, which first reads twice what is known here."""
        if state == TrialState.PRUNED and value is not None and math.isnan(value):
            # As Optuna has it, a pruned trial's value is its last report, if that is a number.
            value = None
        study, known = self.opened.study, trial._cached_frozen_trial
        values = None if value is None else [value]
        study.sampler.after_trial(study, known, state, values)
        note = trial_note(known, self.opened.config, origin, end.name.lower())
        self.storage.end(trial._trial_id, state, value, note)


@contextmanager
def beating_heart(
    storage: OwnedStorage, trial_id: int, lost_trials: LostTrials, patience: Patience
) -> Iterator[None]:
    """Record a heartbeat of the trial from now on, and look whose heart does not beat."""
    ended = threading.Event()

    def answers(step: Callable[[], None], trouble: str, is_known: bool) -> bool:
        try:
            step()
        except STORAGE_ERRORS as error:
            if not is_known:
                logger.info("%s (%s)", trouble, reason(error))
            return False
        except Exception:
            logger.warning(trouble, exc_info=True)
        return True

    def beat() -> None:
        beats = looks = True
        # If it has not, soon again: others may take the trial for lost.
        while not ended.wait(HEARTBEAT_SECONDS if beats and looks else HEARTBEAT_AGAIN_SECONDS):
            record = partial(storage.record_heartbeat, trial_id)
            beats = answers(record, "a heartbeat could not be recorded", not beats)
            if beats:
                patience.heard()
            look = lost_trials.take_back
            looks = answers(look, "lost trials could not be looked for", not looks)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # It may be waiting for a database that does not answer.
        thread.join(LONGEST_JOIN_SECONDS)
