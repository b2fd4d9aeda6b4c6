"""A bad night in half an hour: workers killed and paused, machines lost, the database restarted.

    python -m tests.benchmarks.soak [--minutes 30] [--trials 500] [--workers 4]

One study on a real PostgreSQL. Its trials compute little; what each epoch gives depends on all
epochs before it, through the state that a resumed trial is given. At the end every check is printed
with what was found; exit code 1 if one does not hold.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from studies.checkpoints import CheckpointDirectory, open_checkpoints
from studies.results import ERROR, LOSSES, rank, record
from studies.storage import open_database
from studies.study import OpenedStudy, open_study
from tests.conftest import Postgres, running_postgres
from tests.forked import HPSEARCH

EPOCHS = 10
MEAN_EPOCHS = 5.0
"""That a trial has, since most are pruned; with it the study lasts about as long as was asked."""
SHARE_AT_WORK = 0.8
"""Of a worker's time: the rest is lost to what happens to it."""
PAUSE_BETWEEN_EVENTS = (4.0, 14.0)  # seconds
LONGEST_OUTAGE = 30.0
LONGEST_SLEEP = 100.0
"""Of a paused worker: after 60 s it is taken for dead."""

STUDY = """
name = "soak"
[trial]
epochs = {epochs}
objective = "objectives:train"
[space]
x = {{ low = 0.0, high = 1.0 }}
y = {{ low = 0.0, high = 1.0 }}
[budget]
trials = {trials}
"""

OBJECTIVES = """
import os
import random
import time

import torch

from model.trial import EpochResult

def train(parameters, context):
    state = context.resume or {{"epoch": 0, "accuracy": 0.0}}
    epoch, accuracy = state["epoch"], state["accuracy"]
    best = 1 - (parameters["x"] - 0.3) ** 2 - (parameters["y"] - 0.6) ** 2
    while epoch < context.epochs:
        time.sleep({seconds})
        epoch += 1
        noise = random.Random(f"{{context.seed}} {{epoch}}").uniform(-0.1, 0.1)
        accuracy += 0.4 * (best - accuracy) + 0.1 * noise
        with open("epochs", "a") as file:
            file.write(f"{{context.seed}} {{epoch}} {{accuracy!r}} {{os.getpid()}}\\n")
        weights = {{"accuracy": torch.full((10_000,), accuracy, dtype=torch.float64)}}
        state = {{"epoch": epoch, "accuracy": accuracy}}
        yield EpochResult(epoch, accuracy, 1.0, 100.0, weights, state)
"""


@dataclass
class Night:
    """What happens to the workers of one launcher, which is started again when it is lost."""

    directory: Path
    database: Postgres
    workers: int
    chance: random.Random
    started: float = field(default_factory=time.monotonic)
    launcher: subprocess.Popen[bytes] | None = None
    events: Counter[str] = field(default_factory=Counter)

    def say(self, text: str) -> None:
        seconds = int(time.monotonic() - self.started)
        print(f"{seconds // 60:3d}:{seconds % 60:02d}  {text}", flush=True)

    def launch(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.launcher = subprocess.Popen(
                [HPSEARCH, "run", "own.toml", "--workers", str(self.workers)],
                cwd=self.directory,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "HPSEARCH_STORAGE": self.database.url,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def at_work(self) -> list[int]:
        """The processes of the workers."""
        assert self.launcher
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        with suppress(OSError):
            return [int(number) for number in children.read_text().split()]
        return []

    def happen(self) -> None:
        """One event, at random."""
        workers = self.at_work()
        kinds = {"kill": 8, "stop": 3, "pause": 1, "outage": 1.5, "machine": 0.3}
        (kind,) = self.chance.choices(list(kinds), list(kinds.values()))
        if kind == "outage":
            seconds = self.chance.uniform(0, LONGEST_OUTAGE)
            self.say(f"the database stops for {seconds:.0f} s")
            self.database.stop()
            time.sleep(seconds)
            self.database.start()
        elif kind == "machine":
            self.say("launcher and workers are killed, and started again elsewhere")
            assert self.launcher
            self.launcher.kill()
            self.launcher.wait()
            for worker in workers:
                _send(worker, signal.SIGKILL)
            self.launch()
        elif not workers:
            return
        else:
            worker = self.chance.choice(workers)
            if kind == "pause":
                seconds = self.chance.uniform(0, LONGEST_SLEEP)
                self.say(f"worker {worker} is paused for {seconds:.0f} s")
                _send(worker, signal.SIGSTOP)
                time.sleep(seconds)
                _send(worker, signal.SIGCONT)
            else:
                number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
                self.say(f"{number.name} to worker {worker}")
                _send(worker, number)
        self.events[kind] += 1

    def pass_by(self) -> int:
        """Let it be night until the study is complete: the launcher's exit code."""
        self.launch()
        while True:
            assert self.launcher
            with suppress(subprocess.TimeoutExpired):
                return self.launcher.wait(self.chance.uniform(*PAUSE_BETWEEN_EVENTS))
            self.happen()


def _send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def trained(directory: Path) -> Iterator[tuple[int, int, float]]:
    """The epochs that were trained: seed of the trial, epoch, accuracy."""
    for line in (directory / "epochs").read_text().splitlines():
        seed, epoch, accuracy, _ = line.split()
        yield int(seed), int(epoch), float(accuracy)


def checks(
    code: int,
    directory: Path,
    opened: OpenedStudy,
    trials: int,
    workers: int,
    events: Counter[str],
) -> Iterator[tuple[bool, str]]:
    """Each of what must hold: whether it does, and what was found."""
    found = opened.study.get_trials(deepcopy=False)
    states = Counter(trial.state for trial in found)
    finished = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
    yield code == 0, f"hpsearch run ended with exit code {code}"
    yield finished == trials, f"{finished} trials finished, {trials} were asked for"
    yield len(found) == finished, f"in another state: {len(found) - finished}{_why(found)}"
    epochs: dict[tuple[int, int], set[float]] = {}
    count = 0
    for seed, epoch, accuracy in trained(directory):
        epochs.setdefault((seed, epoch), set()).add(accuracy)
        count += 1
    differing = sum(1 for values in epochs.values() if len(values) > 1)
    yield differing == 0, f"epochs trained twice with another value: {differing}"
    wrong = sum(1 for trial in found if not _reported_as_trained(trial, epochs))
    yield wrong == 0, f"trials whose reports are not what was trained: {wrong}"
    twice = count - len(epochs)
    # Of a worker that is killed, or paused and taken for dead, the epoch at whose end it was. What
    # is asked to stop, or does without its database for a while, repeats none.
    at_most = events["kill"] + events["pause"] + workers * events["machine"]
    yield twice <= at_most, f"epochs trained twice: {twice} of {count}, at most {at_most} allowed"
    checkpoints = open_checkpoints(opened, directory / "var", None, to_write=False)
    best = rank([record(trial) for trial in found])[: opened.config.checkpoints.keep]
    loadable = sum(1 for trial in best if _is_loadable(checkpoints, trial.number, trial.value))
    yield loadable == len(best) > 0, f"checkpoints of the best: {loadable} of {len(best)} loadable"
    losses = [_losses(trial) for trial in found]
    lost = f"{sum(losses)}, {max(losses)} of them in one"
    yield True, f"workers lost in the middle of a trial: {lost}"


def _reported_as_trained(trial: FrozenTrial, epochs: dict[tuple[int, int], set[float]]) -> bool:
    reported = trial.intermediate_values
    seed = trial.user_attrs["seed"]
    return sorted(reported) == list(range(1, len(reported) + 1)) and all(
        epochs.get((seed, epoch)) == {value} for epoch, value in reported.items()
    )


def _is_loadable(checkpoints: CheckpointDirectory, number: int, value: float | None) -> bool:
    weights = checkpoints.load(number).weights["accuracy"]
    return value is not None and weights.tolist() == [value] * 10_000


def _why(trials: Sequence[FrozenTrial]) -> str:
    """Of those that have failed."""
    failed = [trial for trial in trials if ERROR in trial.user_attrs]
    return "".join(f"; trial {trial.number}: {trial.user_attrs[ERROR]}" for trial in failed)


def _losses(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(LOSSES, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30, help="about as long it lasts")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes * arguments.workers * SHARE_AT_WORK
    with running_postgres() as server, tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "objectives.py").write_text(
            OBJECTIVES.format(seconds=seconds / arguments.trials / MEAN_EPOCHS)
        )
        study = STUDY.format(epochs=EPOCHS, trials=arguments.trials)
        (directory / "own.toml").write_text(study)
        database = server.new_database()
        night = Night(directory, database, arguments.workers, random.Random(arguments.seed))
        code = night.pass_by()
        happened = ", ".join(f"{kind} {number}" for kind, number in night.events.most_common())
        night.say(f"the launcher has ended; there were: {happened or 'no events'}")
        opened = open_study("soak", open_database(database.url))
        all_hold = True
        found = checks(code, directory, opened, arguments.trials, arguments.workers, night.events)
        for holds, text in found:
            night.say(f"{'ok' if holds else 'NOT'}  {text}")
            all_hold &= holds
        log = (directory / "log").read_text()
        traceback = log.find("Traceback")
        night.say(f"{'ok' if traceback < 0 else 'NOT'}  no traceback in the log")
        if traceback >= 0:
            print(log[max(traceback - 1_000, 0) :][:5_000], file=sys.stderr)
        if not all_hold:
            print(log[-20_000:], file=sys.stderr)
    return 0 if all_hold and traceback < 0 else 1


if __name__ == "__main__":
    sys.exit(main())
