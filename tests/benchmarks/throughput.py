"""How many images a second does a trial train, and what would be possible?

    python -m tests.benchmarks.throughput
    python -m tests.benchmarks.throughput --widths 16 --rounds 9 --json

All contenders train a ResNet-18 of one width on the same CIFAR-10 images, and take turns, so that
whatever else the machine does is shared; of each the median over the rounds is printed. They are

    notebook        the notebook's loop: a torchvision data set, a DataLoader in the process, flip
                    and resized crop by PIL, fp32, NCHW, Adam, batches of 64
    notebook-2      the same with two worker processes
    pytorch-cifar   that project's loop: crop and flip by PIL, two worker processes, fp32, NCHW,
                    SGD, batches of 128
    trial-B         ours (`model.train.train`): flip, crop and cutout on the device, SGD, batches
                    of B
    reference       the same with the optimizer and the batches of the reference
    step-B          our model and optimizer on one batch that lies on the device normalised
    scratch-64      step-64 with the layers written by hand (`model/layers.py`)
    floor-B         the model's convolutions alone, forward and backward, in the same precision

A worker process of a DataLoader is started anew in each epoch, as by default. On a CPU the epochs
are long enough (`--images`) for that not to matter; on a GPU they are not.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

from data.dataset import load_dataset
from data.split import TrainingData, split_for_training
from model.evaluate import normalise, to_float
from model.hyperparameters import NOTEBOOK, REFERENCE, parse_hyperparameters
from model.optimizers import OPTIMIZERS
from model.precision import autocast, compute_dtype
from model.train import build_model, train
from model.trial import TrialContext

BATCH_SIZES = (64, 128)
IMAGES = {64: 1024, 16: 4096}
"""In an epoch, by width: seconds each on a CPU."""
REFERENCE_UPDATE = {
    name: {**NOTEBOOK, **REFERENCE}[name]
    for name in ("optimizer", "learning_rate", "momentum", "weight_decay", "batch_size")
}
RESIZED = transforms.RandomResizedCrop(32)
CROPPED = transforms.RandomCrop(32, padding=4)

Epoch = Callable[[], int]
"""Trains some images, and says how many."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contenders share."""

    data: TrainingData
    """On the device."""
    device: torch.device
    width: int
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.precision, self.device)

    def model(self, layers: str = "torch") -> nn.Module:
        hyperparameters = parse_hyperparameters({"width": self.width, "layers": layers})
        return build_model(hyperparameters, len(self.data.classes))


class PilImages:
    """As `torchvision.datasets.CIFAR10`: an array in memory, a PIL image at a time."""

    def __init__(self, data: TrainingData, transform: Callable[[Any], Tensor]) -> None:
        self._images = data.train.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = data.train.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def usual_loop(
    setting: Setting, crop: nn.Module, optimizer: str, batch_size: int, processes: int
) -> Epoch:
    """The loop of most tutorials."""
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps += [transforms.Normalize(setting.data.normalisation.mean, setting.data.normalisation.std)]
    images = PilImages(setting.data, transforms.Compose(steps))
    loader: DataLoader[Any] = DataLoader(
        images,  # type: ignore[arg-type]
        batch_size,
        shuffle=True,
        num_workers=processes,
    )
    model = setting.model().to(setting.device).train()
    update = OPTIMIZERS[optimizer](model.parameters(), 1e-3, 0.0)

    def epoch() -> int:
        trained, loss_sum = 0, 0.0
        for batch, labels in loader:
            update.zero_grad()
            logits = model(batch.to(setting.device))
            loss = functional.cross_entropy(logits, labels.to(setting.device))
            loss.backward()  # type: ignore[no-untyped-call]
            update.step()
            loss_sum += loss.item()
            trained += len(labels)
        return trained

    return epoch


def trial(setting: Setting, update: Mapping[str, Any]) -> Epoch:
    """Ours, without the evaluation that follows an epoch.

    Args:
        update: the hyperparameters of the optimizer, and the batch size.
    """
    parameters = {
        **update,
        "schedule": "one-cycle",
        "augmentation": "flip+crop+cutout",
        "width": setting.width,
    }
    one = setting.data.validation.select(torch.arange(1, device=setting.device))
    data = replace(setting.data, validation=one)
    results = train(parameters, TrialContext(data, setting.device, 10**6, 0, setting.precision))

    def epoch() -> int:
        next(results)
        return len(setting.data.train)

    return epoch


def step(setting: Setting, batch_size: int, layers: str = "torch") -> Epoch:
    """Nothing but forward, backward and update."""
    model = setting.model(layers).train()
    model.to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    update = OPTIMIZERS["sgd"](model.parameters(), 1e-3, 0.0)
    images = normalise(to_float(setting.data.train.images[:batch_size]), setting.data.normalisation)
    labels = setting.data.train.labels[:batch_size]

    def epoch() -> int:
        steps = len(setting.data.train) // batch_size
        for _ in range(steps):
            with autocast(setting.dtype, setting.device):
                logits = model(images)
            loss = functional.cross_entropy(logits.float(), labels)
            update.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            update.step()
        return steps * batch_size

    return epoch


def floor(setting: Setting, batch_size: int) -> Epoch:
    """Every convolution once forward and once backward, each by itself."""
    dtype = setting.dtype
    calls = []
    for convolution, shape in convolutions(setting, batch_size):
        images = torch.randn(shape, device=setting.device, dtype=dtype)
        images = images.to(memory_format=torch.channels_last)
        images.requires_grad_(convolution.in_channels != 3)
        weights = convolution.weight.detach().to(setting.device, dtype)
        weights = weights.to(memory_format=torch.channels_last).requires_grad_()
        wanted = [item for item in (images, weights) if item.requires_grad]
        calls.append((images, weights, convolution.stride, convolution.padding, wanted))
    gradients: list[Tensor] = []

    def once() -> None:
        for index, (images, weights, stride, padding, wanted) in enumerate(calls):
            output = functional.conv2d(images, weights, None, stride, padding)
            if index == len(gradients):
                gradients.append(torch.randn_like(output))
            torch.autograd.grad(output, wanted, gradients[index])

    def epoch() -> int:
        steps = len(setting.data.train) // batch_size
        for _ in range(steps):
            once()
        return steps * batch_size

    once()
    return epoch


def convolutions(setting: Setting, batch_size: int) -> list[tuple[nn.Conv2d, tuple[int, ...]]]:
    """The model's convolutions, with the shapes of their inputs."""
    found: list[tuple[nn.Conv2d, tuple[int, ...]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        shape = inputs[0].shape[1:]
        found.append((module, (batch_size, *shape)))

    model = setting.model().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    return found


def contenders(setting: Setting) -> dict[str, Epoch]:
    ours: dict[str, Epoch] = {}
    for batch_size in BATCH_SIZES:
        sgd = {"optimizer": "sgd", "learning_rate": 1e-3, "batch_size": batch_size}
        ours[f"trial-{batch_size}"] = trial(setting, sgd)
        ours[f"step-{batch_size}"] = step(setting, batch_size)
        ours[f"floor-{batch_size}"] = floor(setting, batch_size)
    return {
        "notebook": usual_loop(setting, RESIZED, "adam", 64, 0),
        "notebook-2": usual_loop(setting, RESIZED, "adam", 64, 2),
        "pytorch-cifar": usual_loop(setting, CROPPED, "sgd", 128, 2),
        **ours,
        "reference": trial(setting, REFERENCE_UPDATE),
        "scratch-64": step(setting, 64, "scratch"),
    }


def measure(
    setting: Setting, rounds: int, names: Sequence[str] | None = None
) -> dict[str, list[float]]:
    """Images a second of each contender in each round; one round more is not counted."""
    found = contenders(setting)
    chosen = {name: epoch for name, epoch in found.items() if names is None or name in names}
    speeds: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(rounds + 1):
        for name, epoch in chosen.items():
            started = time.perf_counter()
            trained = epoch()
            if setting.device.type == "cuda":
                torch.cuda.synchronize(setting.device)
            if number:
                speeds[name].append(trained / (time.perf_counter() - started))
    return speeds


def summarise(speeds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in speeds.items()}


RATIOS = (
    ("trial-64", "notebook"),
    ("trial-64", "notebook-2"),
    ("trial-128", "pytorch-cifar"),
    ("trial-64", "step-64"),
    ("trial-128", "step-128"),
    ("reference", f"trial-{REFERENCE_UPDATE['batch_size']}"),
    ("step-64", "floor-64"),
    ("step-128", "floor-128"),
    ("scratch-64", "step-64"),
)


def table(medians: Mapping[str, float]) -> list[str]:
    lines = ["| | images/s |", "|---|---|"]
    lines += [f"| {name} | {speed:,.0f} |" for name, speed in medians.items()]
    lines += ["", "| ratio | |", "|---|---|"]
    lines += [
        f"| {first} / {second} | {medians[first] / medians[second]:.2f} |"
        for first, second in RATIOS
        if first in medians and second in medians
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--images", type=int, help="in an epoch; by default enough for the width")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", nargs="+")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cache", type=Path, default=Path("var"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = split_for_training(load_dataset("cifar10-mini", arguments.cache), 0.1, 0).to(device)
    results = {}
    for width in arguments.widths:
        count = arguments.images or IMAGES.get(width, 1024)
        some = whole.train.select(torch.arange(count, device=device))
        setting = Setting(replace(whole, train=some), device, width, arguments.precision)
        speeds = measure(setting, arguments.rounds, arguments.contenders)
        results[width] = speeds
        if not arguments.json:
            print(f"\nwidth {width}, {arguments.rounds} rounds of {count} images\n")
            print(*table(summarise(speeds)), sep="\n", flush=True)
    machine = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "computes in": str(compute_dtype(arguments.precision, device)),
    }
    if arguments.json:
        print(json.dumps({**machine, "images_per_second": results}, indent=2))
    else:
        print("", *(f"{name} {value}" for name, value in machine.items()), sep="\n")


if __name__ == "__main__":
    main()
