"""Is drawing for the dashboard in the way of training?

    python -m tests.benchmarks.drawing
    python -m tests.benchmarks.drawing --trials 1000 --rounds 30

Epochs of a quickstart trial, by turns with one drawing of the study's figures in a thread and
without, on one thread of a CPU. A worker draws once a minute at most, and shares that with the
others: the price of a minute's drawing is the difference of the two medians.
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from optuna.trial import create_trial

from data.dataset import load_dataset
from data.files import DEFAULT_ROOT
from data.split import split_for_training
from model.train import train
from search.draw import draw
from search.objective import trial_context
from studies.checkpoints import open_checkpoints
from studies.config import load_study_file
from studies.storage import open_storage
from studies.study import create_or_continue
from tests.system.served import put_trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_study_file("quickstart")
    dataset = load_dataset(config.data.source, DEFAULT_ROOT)
    data = split_for_training(dataset, config.data.validation_fraction, config.seed)
    epochs = 2 * given.rounds + 1
    config = config.model_copy(update={"trial": config.trial.model_copy(update={"epochs": epochs})})
    context = trial_context(config, data, torch.device("cpu"), 0)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    drawings: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'a.db'}"
        storage = open_storage(url, create=True)
        opened, _ = create_or_continue(storage, config, dataset.digest, enqueued=[])
        put_trials(url, opened, given.trials)
        checkpoints = open_checkpoints(opened, Path(directory), None)

        def timed() -> None:
            started = time.perf_counter()
            draw(opened, storage, checkpoints, 0.0)
            drawings.append(time.perf_counter() - started)

        results = iter(train({"width": 8, "learning_rate": 0.01}, context))
        next(results)  # What is done once.
        timed()
        for number in range(2 * given.rounds):
            with_drawing = number % 2 == 1
            opened.study.add_trial(create_trial(value=0.5))  # News.
            thread = threading.Thread(target=timed)
            started = time.perf_counter()
            if with_drawing:
                thread.start()
            next(results)
            seconds[with_drawing].append(time.perf_counter() - started)
            if with_drawing:
                thread.join()
    without, with_it = (statistics.median(seconds[key]) for key in (False, True))
    print(
        f"{given.trials} trials: an epoch takes {without:.2f} s, {with_it:.2f} s while the figures "
        f"are drawn once ({with_it / without:.2f} times); a drawing takes "
        f"{statistics.median(drawings[1:]):.2f} s beside it, the first one {drawings[0]:.2f} s"
    )


if __name__ == "__main__":
    main()
