"""One worker: claim a trial, run it, tell the study, until the budget is spent."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from optuna.trial import Trial, TrialState

from data.split import TrainingData
from search.budget import Turn, check_failures, claim
from search.device import device_name, free_memory
from search.enqueue import TOKEN
from search.objective import End, Objective, Outcome, run_trial, suggest, trial_context
from search.prepare import first_trials
from search.samplers import derived_seed, make_pruner, make_sampler
from search.space import make_space
from search.stop import StopRequest
from search.warm import earlier_trials
from studies.checkpoints import CheckpointDirectory, ended, superfluous
from studies.ownership import NotOwned, OwnedStorage, worker_name
from studies.results import DEVICE, DIVERGED, ERROR, SEED, THREADS, WORKER, record
from studies.storage import HEARTBEAT_SECONDS, STALE_SECONDS, quiet_optuna
from studies.study import OpenedStudy

POLL_SECONDS = 1.0
"""Between looks at the study while all trials are taken."""

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
    deadline: float | None
    """On the clock `time.time`: no trial is started after it."""

    def work(self) -> None:
        """Run trials until the budget is spent or the worker is asked to stop.

        Raises:
            UserError: trial after trial fails.
        """
        config, study = self.opened.config, self.opened.study
        seed = derived_seed(config.seed, socket.gethostname(), os.getpid(), time.time_ns())
        earlier = earlier_trials(self.opened)
        study.sampler = make_sampler(config.sampler, seed, config.trial.epochs, earlier)
        study.pruner = make_pruner(config.pruner, config.trial.epochs)
        may_create = config.sampler.name != "grid"
        trials_before = len(study.get_trials(deepcopy=False))
        while not self.stop.requested:
            if self.deadline is not None and time.time() >= self.deadline:
                logger.info("the time is up")
                return
            with quiet_optuna():
                self._take_back_lost_trials()
                check_failures(study.get_trials(deepcopy=False)[trials_before:])
                claimed = claim(study, self.storage, config.budget.trials, may_create)
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

    def _take_back_lost_trials(self) -> None:
        retries = self.opened.config.trial.max_retries
        for trial_id, owner in self.storage.lost_trials(self.opened.study._study_id).items():
            reason = f"no sign of life for {STALE_SECONDS} s"
            if self.storage.take_away(trial_id, owner, retries, reason):
                number = self.storage.get_trial(trial_id).number
                logger.warning("trial %d: its worker was lost (%s)", number, reason)

    def _run(self, trial: Trial) -> None:
        config = self.opened.config
        with beating_heart(self.storage, trial._trial_id):
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
            context = trial_context(config, self.data, self.device, seed)
            # A configuration of the user's own is one whose result is wanted.
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
                may_prune=not asked_for,
            )
            self._tell(trial, outcome)
        if outcome.end is End.FAILED:
            free_memory(self.device)
        records = [record(item) for item in self.opened.study.get_trials(deepcopy=False)]
        present = self.checkpoints.trial_numbers()
        self.checkpoints.remove(superfluous(present, records, config.checkpoints.keep))
        self.checkpoints.remove_states(ended(records))

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
            trial.set_user_attr(DIVERGED, outcome.reason)
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            logger.info("trial %d: diverged: %s", number, outcome.reason)
        elif outcome.end is End.FAILED:
            trial.set_user_attr(ERROR, outcome.reason)
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            logger.error("trial %d: failed: %s", number, outcome.reason)
        else:
            self.storage.hand_back(trial._trial_id)
            logger.info("trial %d: interrupted after epoch %d, handed back", number, epochs)


@contextmanager
def beating_heart(storage: OwnedStorage, trial_id: int) -> Iterator[None]:
    """Record a heartbeat of the trial from now on, so that others know that it is alive."""
    storage.record_heartbeat(trial_id)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                storage.record_heartbeat(trial_id)
            except Exception:
                logger.warning("a heartbeat could not be recorded", exc_info=True)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def checkpoint_directory(opened: OpenedStudy, root: Path) -> CheckpointDirectory:
    """Where the study's checkpoints are, below the root that all its workers share."""
    return CheckpointDirectory(opened.directory(root) / "checkpoints")
