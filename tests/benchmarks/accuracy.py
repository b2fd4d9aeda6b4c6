"""How accurate is a ResNet-18 after ten epochs, by what it is trained with?

    python -m tests.benchmarks.accuracy --data CIFAR10_FOLDER --width 16 --seeds 3
    python -m tests.benchmarks.accuracy --data CIFAR10_FOLDER --width 64 --seeds 1 \\
        --configurations reference

Trains on all training images of a data set (a name or a folder as in a study file), and measures on
the test images, each as it is (plain) and averaged with its mirror image (flips). Beside the
configurations of this project, `pytorch-cifar` is that repository's recipe with its cosine brought
to ten epochs. After a colon come settings in place of a configuration's own, with commas between:

    --configurations reference reference:ema=0.0,label_smoothing=0.1

Each run is a line of `--log`; what is there is not trained again, and a run that was interrupted
goes on after its last epoch.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.files import write_whole
from studies.config import parse_assignment

EPOCHS = 10

PYTORCH_CIFAR: Mapping[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "one-cycle-cosine",
    "peak_fraction": 0.0,
    "batch_size": 128,
    "augmentation": "flip+crop",
    "pooling": "average",
}
"""github.com/kuangliu/pytorch-cifar. It differs from its main.py in six things: Nesterov's
momentum; no weight decay of batch norm and biases; a crop that is padded by reflection; a cosine
that moves with each step, not each epoch; other standard deviations in the normalisation (0.247,
0.2435 and 0.2616, not 0.2023, 0.1994 and 0.201); and bf16 where `--precision auto` takes it."""


def configuration(name: str) -> dict[str, Any]:
    """The parameters of a configuration by its name, with the settings after the colon."""
    from model.hyperparameters import NOTEBOOK, REFERENCE

    known = {
        "notebook": NOTEBOOK,
        "pytorch-cifar": {**NOTEBOOK, **PYTORCH_CIFAR},
        "reference": {**NOTEBOOK, **REFERENCE},
    }
    base, _, settings = name.partition(":")
    changes = dict(parse_assignment(item) for item in settings.split(",")) if settings else {}
    return {**known[base], **changes}


def train_one(job: tuple[str, int, argparse.Namespace, int]) -> dict[str, Any]:
    """Train a configuration with a seed, on some threads, and measure it."""
    import torch

    from data.dataset import load_dataset
    from data.split import stratified_split, whole_for_training
    from model.evaluate import accuracies
    from model.hyperparameters import parse_hyperparameters
    from model.train import build_model, train
    from model.trial import TrialContext

    name, seed, arguments, threads = job
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = load_dataset(arguments.data, arguments.cache)
    data = whole_for_training(dataset)
    if arguments.images:
        fraction = arguments.images / len(data.train)
        data = replace(
            data, train=data.train.select(stratified_split(data.train.labels, fraction, 0)[1])
        )
    parameters = {**configuration(name), "width": arguments.width}
    model = build_model(parse_hyperparameters(parameters), len(data.classes)).to(device)
    test = dataset.test.to(device)
    interrupted = state_file(name, seed, arguments)
    before: dict[str, Any] = {"speeds": [], "losses": [], "seconds": 0.0, "state": None}
    weights = None
    if interrupted.exists():
        before = torch.load(interrupted, map_location="cpu", weights_only=True)
        weights = before["weights"]
    speeds, losses, seconds = before["speeds"], before["losses"], before["seconds"]
    context = TrialContext(data.to(device), device, EPOCHS, seed, arguments.precision)
    started = time.perf_counter()
    for result in train(parameters, replace(context, resume=before["state"])):
        speeds.append(round(result.images_per_second))
        losses.append(round(result.training_loss, 4))
        now = time.perf_counter()
        seconds, started = seconds + now - started, now
        print(f"{name}, seed {seed}: epoch {result.epoch}, loss {losses[-1]}", flush=True)
        done = {"speeds": speeds, "losses": losses, "seconds": seconds, "state": result.state}
        weights = result.weights
        file = io.BytesIO()
        torch.save({**done, "weights": weights}, file)
        write_whole(interrupted, file.getbuffer())
    assert weights is not None
    model.load_state_dict(weights)
    measured = accuracies(model, test, data.normalisation)
    return {
        **asked(name, seed, arguments),
        "digest": dataset.digest[:12],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": threads,
        "plain": measured.plain,
        "flips": measured.with_flips,
        "seconds": round(seconds, 1),
        "images_per_second": speeds,
        "training_loss": losses,
        "torch": torch.__version__,
    }


def asked(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a run is of: two with the same are the same."""
    return {
        "configuration": name,
        "seed": seed,
        "data": str(arguments.data),
        "images": arguments.images,
        "width": arguments.width,
        "precision": arguments.precision,
        "parameters": {**configuration(name), "width": arguments.width},
    }


def state_file(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Where a training that is interrupted can be taken up again."""
    what = json.dumps(asked(name, seed, arguments), sort_keys=True)
    log: Path = arguments.log
    return log.with_name(f"{log.stem}-{hashlib.sha256(what.encode()).hexdigest()[:12]}.state")


def mean_and_deviation(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| configuration | seeds | plain % | flips % | minutes |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(row["configuration"] for row in rows):
        mine = [row for row in rows if row["configuration"] == name]
        plain, flips = ([row[key] for row in mine] for key in ("plain", "flips"))
        minutes = statistics.median(row["seconds"] for row in mine) / 60
        lines.append(
            f"| {name} | {len(mine)} | {mean_and_deviation(plain)} | {mean_and_deviation(flips)} "
            f"| {minutes:.1f} |"
        )
    return lines


def machine(rows: Sequence[Mapping[str, Any]]) -> str:
    """On what, and with which torch."""
    return "; ".join(
        dict.fromkeys(
            f"{row['device']}, {row['threads']} threads, torch {row['torch']}" for row in rows
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="cifar10-mini")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, help="train on so many of them")
    parser.add_argument(
        "--configurations", nargs="+", default=["notebook", "pytorch-cifar", "reference"]
    )
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--processes", type=int, default=1, help="which share the cores")
    parser.add_argument("--cache", type=Path, default=Path("var"))
    parser.add_argument("--log", type=Path, default=Path("var/accuracy.jsonl"))
    arguments = parser.parse_args()
    threads = max((os.cpu_count() or 1) // arguments.processes, 1)
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    arguments.log.touch()
    wanted = [(name, seed) for seed in range(arguments.seeds) for name in arguments.configurations]
    known = [json.loads(line) for line in arguments.log.read_text().splitlines()]
    rows, jobs = [], []
    for name, seed in wanted:
        what = asked(name, seed, arguments)
        found = next((row for row in known if what.items() <= row.items()), None)
        if found:
            rows.append(found)
        else:
            jobs.append((name, seed, arguments, threads))
    with (
        multiprocessing.get_context("spawn").Pool(arguments.processes) as pool,
        arguments.log.open("a") as log,
    ):
        for row in pool.imap_unordered(train_one, jobs, chunksize=1):
            rows.append(row)
            log.write(json.dumps(row) + "\n")
            log.flush()
            state_file(row["configuration"], row["seed"], arguments).unlink()
    order = arguments.configurations
    rows.sort(key=lambda row: (order.index(row["configuration"]), row["seed"]))
    print(*table(rows), "", f"{machine(rows)}", sep="\n")


if __name__ == "__main__":
    main()
