"""Where does the time of a trial's step go?

    python -m tests.benchmarks.profile
    python -m tests.benchmarks.profile --widths 16 --configuration reference:batch_size=128

Trains a few batches under `torch.profiler`, first in the notebook's loop (that of
`tests.benchmarks.throughput`, without worker processes), then as a trial does (`model.train.train`,
in the configuration as for `tests.benchmarks.accuracy`), and prints the milliseconds of a step in
each part of it, forward and backward together. On a GPU the host's time says little: there the
profiler's own table of kernels is the place to look.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import profile, record_function

from data.augment import augment
from data.dataset import load_dataset
from data.split import TrainingData, split_for_training
from model import train as trial
from model.evaluate import Normaliser
from model.hyperparameters import NOTEBOOK
from model.trial import TrialContext
from tests.benchmarks.accuracy import configuration
from tests.benchmarks.throughput import RESIZED, Setting, usual_loop

PARTS = {
    "images by a DataLoader": ("enumerate(DataLoader)",),
    "convolutions": ("conv2d", "ConvolutionBackward"),
    "batch normalisation": ("batch_norm", "BatchNormBackward"),
    "ReLU": ("relu", "ReluBackward"),
    "residual additions": ("aten::add", "AddBackward"),
    "conversions to and from bf16": ("aten::to", "ToCopyBackward"),
    "gradients added up": ("AccumulateGrad",),
    "augmentation and normalisation": ("augmentation", "normalisation"),
    "optimizer": ("Optimizer.step", "Optimizer.zero_grad"),
}
"""Part to what the names of the outermost operations in it have in them; the first that fits."""
OTHERS = "all else"
STEPS = 16


def part_of(name: str) -> str:
    fitting = (part for part, marks in PARTS.items() if any(mark in name for mark in marks))
    return next(fitting, OTHERS)


def milliseconds_by_part(epoch: Callable[[], object], steps: int) -> dict[str, float]:
    """Mean time of each of the `steps` of an epoch, by part."""
    with profile() as run:
        epoch()
    found: Counter[str] = Counter()
    for event in run.events() or ():
        if event.cpu_parent is None:
            found[part_of(event.name)] += event.cpu_time_total / 1000
    return {part: total / steps for part, total in found.most_common()}


def of_notebook(data: TrainingData, width: int) -> dict[str, float]:
    """Of the notebook's loop, after an epoch that is not counted."""
    setting = Setting(data, data.train.images.device, width, "fp32")
    epoch = usual_loop(setting, RESIZED, "adam", NOTEBOOK["batch_size"], 0)
    epoch()
    return milliseconds_by_part(epoch, steps_of(data, NOTEBOOK["batch_size"]))


def of_trial(data: TrainingData, parameters: Mapping[str, Any], precision: str) -> dict[str, float]:
    """Of a trial, after an epoch that is not counted."""
    steps = steps_of(data, parameters["batch_size"])
    context = TrialContext(data, data.train.images.device, 10**6, 0, precision)
    augmenting, normalising = record_function("augmentation"), record_function("normalisation")
    with (
        patch.object(trial, "augment", augmenting(augment)),
        patch.object(Normaliser, "__call__", normalising(Normaliser.__call__)),
    ):
        results = trial.train(parameters, context)
        next(results)
        # An epoch ends with an evaluation, which is not what is looked at here.
        with patch.object(trial, "accuracy", lambda *_: 0.0):
            return milliseconds_by_part(lambda: next(results), steps)


def steps_of(data: TrainingData, batch_size: int) -> int:
    return -(-len(data.train) // batch_size)


def table(times: Mapping[str, float]) -> list[str]:
    whole = sum(times.values())
    lines = ["| | ms a step | share |", "|---|---|---|"]
    rows = [f"| {part} | {time:.2f} | {time / whole:.1%} |" for part, time in times.items()]
    return [*lines, *rows, f"| together | {whole:.2f} | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--configuration", default="reference")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cache", type=Path, default=Path("var"))
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = split_for_training(load_dataset("cifar10-mini", arguments.cache), 0.1, 0).to(device)
    chosen = configuration(arguments.configuration)
    some = whole.train.select(torch.arange(STEPS * chosen["batch_size"], device=device))
    for width in arguments.widths:
        data, parameters = replace(whole, train=some), {**chosen, "width": width}
        for name, times in (
            ("the notebook's loop", of_notebook(data, width)),
            (arguments.configuration, of_trial(data, parameters, arguments.precision)),
        ):
            print(f"\n{name}, width {width}\n", *table(times), sep="\n", flush=True)


if __name__ == "__main__":
    main()
