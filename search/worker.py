"""One worker: claim a trial, run it, tell the study, until the budget is spent."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.trial import Trial, TrialState

from data.split import TrainingData
from model.trial import TrialContext
from search.budget import Turn, check_failures, claim
from search.device import device_name, free_memory
from search.enqueue import TOKEN
from search.lost import LostTrials
from search.objective import End, Objective, Outcome, run_trial, suggest, trial_context
from search.prepare import first_trials
from search.reports import Reports
from search.samplers import derived_seed, make_pruner, make_sampler
from search.space import make_space
from search.stop import StopRequest
from search.warm import earlier_trials
from studies.checkpoints import CheckpointDirectory
from studies.ownership import NotOwned, OwnedStorage, worker_name
from studies.patience import STORAGE_ERRORS, Patience, reason
from studies.results import DEVICE, DIVERGED, ERROR, SEED, THREADS, WORKER, record
from studies.storage import HEARTBEAT_SECONDS, quiet_optuna
from studies.study import OpenedStudy

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

    def work(self) -> None:
        """Run trials until the budget is spent or the worker is asked to stop.

        Raises:
            UserError: trial after trial fails.
            StorageLost: the database has not answered for too long.
        """
        config, study = self.opened.config, self.opened.study
        seed = derived_seed(config.seed, socket.gethostname(), os.getpid(), time.time_ns())
        earlier = self.patience.call(lambda: earlier_trials(self.opened))
        study.sampler = make_sampler(config.sampler, seed, config.trial.epochs, earlier)
        study.pruner = make_pruner(config.pruner, config.trial.epochs)
        trials_before = len(self.patience.call(lambda: study.get_trials(deepcopy=False)))
        while not self.stop.requested:
            if self.deadline is not None and time.time() >= self.deadline:
                logger.info("the time is up")
                return
            claimed = self.patience.call(lambda: self._next(trials_before), self._may_wait)
            if isinstance(claimed, Trial):
                try:
                    self._run(claimed)
                except (NotOwned, optuna.exceptions.UpdateFinishedTrialError):
                    # Its heartbeat stopped for too long, for instance while a laptop was asleep.
                    logger.warning(
                        "trial %d: this worker was taken for dead; another has it now",
                        claimed.number,
                    )
            elif claimed is Turn.WAIT:
                time.sleep(POLL_SECONDS)
            else:
                return

    def _next(self, trials_before: int) -> Trial | Turn:
        config, study = self.opened.config, self.opened.study
        with quiet_optuna():
            self.lost_trials.take_back()
            check_failures(study.get_trials(deepcopy=False)[trials_before:])
            may_create = config.sampler.name != "grid"
            return claim(study, self.storage, config.budget.trials, may_create)

    def _may_wait(self) -> bool:
        """Whether there is time to wait for the database."""
        return not self.stop.requested

    def _run(self, trial: Trial) -> None:
        # Once asked to stop, what there is to say is still said within the grace period.
        def may_wait() -> bool:
            return not self.stop.is_over

        with beating_heart(self.storage, trial._trial_id, self.lost_trials):
            parameters, context = self.patience.call(lambda: self._begin(trial), may_wait)
            reports = Reports(
                trial, self.patience, may_wait, lambda: self.storage.holds(trial._trial_id)
            )
            # A configuration of the user's own is one whose result is wanted.
            config = self.opened.config
            asked_for = (
                trial.number < len(first_trials(config, config.name)) or TOKEN in trial.user_attrs
            )
            outcome = run_trial(
                trial,
                parameters,
                self.objective,
                context,
                self.checkpoints,
                self.stop,
                reports,
                may_prune=not asked_for,
            )
            if outcome.reason is not None:
                key = DIVERGED if outcome.end is End.DIVERGED else ERROR
                reports.attribute(key, outcome.reason)
                reports.deliver_all()
            self.patience.call(lambda: self._tell(trial, outcome), may_wait)
        if outcome.end is End.FAILED:
            free_memory(self.device)
        self.patience.call(self._tidy, may_wait)

    def _begin(self, trial: Trial) -> tuple[dict[str, Any], TrialContext]:
        config = self.opened.config
        # A retraining was given its seed when it was enqueued.
        seed = trial.user_attrs.get(SEED, derived_seed(config.seed, trial.number))
        trial.set_user_attr(WORKER, worker_name(os.getpid()))
        trial.set_user_attr(SEED, seed)
        goes_on = bool(trial.storage.get_trial(trial._trial_id).intermediate_values)
        ran_on = {DEVICE: device_name(self.device), THREADS: torch.get_num_threads()}
        for key, value in ran_on.items():
            before = trial.user_attrs.get(key, value)
            # A curve of two devices is not to be taken for one of either.
            both = goes_on and before != value
            trial.set_user_attr(key, f"{before}, then {value}" if both else value)
        parameters = suggest(trial, make_space(config.space))
        logger.info("trial %d: %s", trial.number, parameters)
        return parameters, trial_context(config, self.data, self.device, seed)

    def _tidy(self) -> None:
        """Remove the checkpoints that are of no more use."""
        records = [record(item) for item in self.opened.study.get_trials(deepcopy=False)]
        self.checkpoints.tidy(records, self.opened.config.checkpoints.keep)

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        study, number = self.opened.study, trial.number
        best = max(outcome.accuracies, default=0.0)
        epochs = len(outcome.accuracies)
        if outcome.end is End.COMPLETE:
            study.tell(trial, best, skip_if_finished=True)
            logger.info("trial %d: complete, best validation accuracy %.2f%%", number, 100 * best)
        elif outcome.end is End.PRUNED:
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            logger.info("trial %d: pruned after epoch %d at %.2f%%", number, epochs, 100 * best)
        elif outcome.end is End.DIVERGED:
            # In Optuna's terms pruned: it was stopped early and the search can learn from it.
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            logger.info("trial %d: diverged: %s", number, outcome.reason)
        elif outcome.end is End.FAILED:
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            logger.error("trial %d: failed: %s", number, outcome.reason)
        else:
            self.storage.hand_back(trial._trial_id)
            logger.info("trial %d: interrupted after epoch %d, handed back", number, epochs)


@contextmanager
def beating_heart(storage: OwnedStorage, trial_id: int, lost_trials: LostTrials) -> Iterator[None]:
    """Record a heartbeat of the trial from now on, and look whose heart does not beat."""
    ended = threading.Event()

    def beat() -> None:
        pause = float(HEARTBEAT_SECONDS)
        while not ended.wait(pause):
            try:
                storage.record_heartbeat(trial_id)
                lost_trials.take_back()
                pause = HEARTBEAT_SECONDS
            except STORAGE_ERRORS as error:
                if pause == HEARTBEAT_SECONDS:
                    logger.info("a heartbeat could not be recorded (%s)", reason(error))
                # Soon again: others may take the trial for lost.
                pause = HEARTBEAT_AGAIN_SECONDS
            except Exception:
                logger.warning("a heartbeat could not be recorded", exc_info=True)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # It may be waiting for a database that does not answer.
        thread.join(LONGEST_JOIN_SECONDS)
