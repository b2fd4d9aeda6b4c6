"""The default trial: a ResNet trained for some epochs on data that lie on the device."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.augment import AUGMENTATIONS, augment
from model.evaluate import accuracy, normalise, to_float
from model.layers import LAYERS
from model.optimizers import OPTIMIZERS, SCHEDULES, make_scheduler
from model.resnet import BLOCKS_PER_STAGE, ResNet
from model.trial import Diverged, EpochResult, TrialContext

STEPS_BETWEEN_CHECKS = 16
"""How often the loss is looked at. Each look makes a GPU wait, so not after every step."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """All that a study file's `[space]` can name. The defaults are the notebook's configuration.

    Raises:
        ValueError: a value is impossible; the message names it.
    """

    learning_rate: float = 1e-3
    optimizer: str = "adam"
    schedule: str = "constant"
    batch_size: int = 64
    """images"""
    weight_decay: float = 0.0
    augmentation: str = "flip+resized-crop"
    color_jitter: bool = False
    depth: int = 18
    width: int = 64
    dropout: float = 0.0
    layers: str = "torch"

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        _check_choice("depth", self.depth, BLOCKS_PER_STAGE)
        _check_choice("layers", self.layers, LAYERS)
        if not isinstance(self.color_jitter, bool):
            raise ValueError(f"color_jitter must be true or false, but is {self.color_jitter!r}")
        for name in ("batch_size", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, but is {value!r}")
        for name, low, high in (
            ("learning_rate", 0.0, float("inf")),
            ("weight_decay", 0.0, float("inf")),
            ("dropout", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, but is {value!r}")
            if not low <= value < high:
                raise ValueError(f"{name} must be from {low:g} to below {high:g}, but is {value}")


def _check_choice(name: str, value: object, choices: Mapping[Any, Any] | tuple[str, ...]) -> None:
    if value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, but is {value!r}")


HYPERPARAMETER_NAMES = tuple(field.name for field in fields(Hyperparameters))
FRACTIONAL = frozenset(field.name for field in fields(Hyperparameters) if field.type is float)
"""Those that are not whole numbers or choices."""
NOTEBOOK: Mapping[str, Any] = asdict(Hyperparameters())
"""The configuration that the project began with: every study's own baseline."""


def build_model(hyperparameters: Hyperparameters, classes: int) -> ResNet:
    """The untrained network that these hyperparameters describe."""
    return ResNet(
        classes,
        hyperparameters.depth,
        hyperparameters.width,
        hyperparameters.dropout,
        LAYERS[hyperparameters.layers],
    )


def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
    """Train a ResNet on `context.data` and yield a result after each epoch.

    The same parameters and context give the same results on a CPU with the same number of
    threads.

    Raises:
        Diverged: the loss is no longer finite.
        ValueError: a parameter is not one of `Hyperparameters`, or impossible.
    """
    hyperparameters = parse_hyperparameters(parameters)
    data, device = context.data, context.device
    torch.manual_seed(context.seed)
    generator = torch.Generator(device).manual_seed(context.seed)
    model = build_model(hyperparameters, len(data.classes))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = OPTIMIZERS[hyperparameters.optimizer](
        model.parameters(), hyperparameters.learning_rate, hyperparameters.weight_decay
    )
    steps_per_epoch = -(-len(data.train) // hyperparameters.batch_size)
    scheduler = make_scheduler(
        hyperparameters.schedule, optimizer, context.epochs * steps_per_epoch
    )
    autocast = torch.autocast(
        device.type,
        dtype=torch.bfloat16,
        enabled=uses_bfloat16(context.precision, device),
    )

    for epoch in range(1, context.epochs + 1):
        started = time.perf_counter()
        loss_sum = torch.zeros((), device=device)
        order = torch.randperm(len(data.train), device=device, generator=generator)
        model.train()
        for step, indices in enumerate(torch.split(order, hyperparameters.batch_size), start=1):
            images = augment(
                to_float(data.train.images[indices]),
                hyperparameters.augmentation,
                hyperparameters.color_jitter,
                generator,
            )
            loss = _loss(
                model, normalise(images, data.normalisation), data.train.labels[indices], autocast
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            loss_sum += loss.detach() * len(indices)
            if step % STEPS_BETWEEN_CHECKS == 0 or step == steps_per_epoch:
                _check_finite(loss_sum, epoch, step)
        seconds = time.perf_counter() - started
        yield EpochResult(
            epoch=epoch,
            validation_accuracy=accuracy(model, data.validation, data.normalisation),
            training_loss=float(loss_sum) / len(data.train),
            images_per_second=len(data.train) / seconds,
            weights=model.state_dict(),
        )


def parse_hyperparameters(parameters: Mapping[str, Any]) -> Hyperparameters:
    """Check a mapping and fill in the notebook's values.

    Raises:
        ValueError: a name is unknown or a value impossible; the message says what would do.
    """
    for name in parameters:
        if name not in HYPERPARAMETER_NAMES:
            known = ", ".join(HYPERPARAMETER_NAMES)
            raise ValueError(f"unknown hyperparameter {name!r}; known are {known}")
    return Hyperparameters(**parameters)


def _loss(model: nn.Module, images: Tensor, labels: Tensor, autocast: torch.autocast) -> Tensor:
    with autocast:
        logits = model(images)
    return functional.cross_entropy(logits.float(), labels)


def _check_finite(loss_sum: Tensor, epoch: int, step: int) -> None:
    # A sum with one infinite or undefined term is not finite either.
    if not torch.isfinite(loss_sum):
        raise Diverged(f"the training loss was no longer finite in epoch {epoch}, by step {step}")


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16. `auto`: where the hardware does so natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported()
