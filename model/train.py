"""The default trial: a ResNet trained for some epochs on data that lie on the device."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from data.augment import augment, draw_first_flips, mirrored_in
from data.mix import Mixed, mix
from model.average import STEPS_BETWEEN_UPDATES, MovingAverage
from model.evaluate import accuracy, normalise, to_float
from model.hyperparameters import (
    FRACTIONAL,
    HYPERPARAMETER_NAMES,
    NOTEBOOK,
    Hyperparameters,
    parse_hyperparameters,
)
from model.layers import LAYERS
from model.optimizers import make_optimizer, make_scheduler
from model.resnet import ResNet, initialize
from model.trial import Diverged, EpochResult, TrialContext

__all__ = [
    "FRACTIONAL",
    "HYPERPARAMETER_NAMES",
    "NOTEBOOK",
    "Hyperparameters",
    "build_model",
    "mixed_loss",
    "parse_hyperparameters",
    "train",
    "uses_bfloat16",
]

STEPS_BETWEEN_CHECKS = 16
"""How often the loss is looked at. Each look makes a GPU wait, so not after every step."""


def build_model(hyperparameters: Hyperparameters, classes: int) -> ResNet:
    """The untrained network that these hyperparameters describe."""
    model = ResNet(
        classes,
        hyperparameters.depth,
        hyperparameters.width,
        hyperparameters.dropout,
        LAYERS[hyperparameters.layers],
        hyperparameters.pooling,
        hyperparameters.logit_scale,
        hyperparameters.batch_norm_momentum,
    )
    initialize(model, hyperparameters.initialization)
    return model


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
    optimizer = make_optimizer(
        hyperparameters.optimizer,
        model,
        hyperparameters.learning_rate,
        hyperparameters.weight_decay,
        hyperparameters.momentum,
    )
    average = MovingAverage(model, hyperparameters.ema) if hyperparameters.ema else None
    steps_per_epoch = -(-len(data.train) // hyperparameters.batch_size)
    scheduler = make_scheduler(
        hyperparameters.schedule,
        optimizer,
        context.epochs * steps_per_epoch,
        hyperparameters.peak_fraction,
    )
    autocast = torch.autocast(
        device.type,
        dtype=torch.bfloat16,
        enabled=uses_bfloat16(context.precision, device),
    )

    first_flips = draw_first_flips(len(data.train), context.seed, device)
    for epoch in range(1, context.epochs + 1):
        started = time.perf_counter()
        loss_sum = torch.zeros((), device=device)
        mirrored = mirrored_in(epoch, first_flips)
        order = torch.randperm(len(data.train), device=device, generator=generator)
        updated = 0
        model.train()
        for step, indices in enumerate(torch.split(order, hyperparameters.batch_size), start=1):
            images = augment(
                to_float(data.train.images[indices]),
                hyperparameters.augmentation,
                hyperparameters.color_jitter,
                generator,
                mirrored[indices],
            )
            mixed = mix(images, hyperparameters.mixing, generator)
            with autocast:
                logits = model(normalise(mixed.images, data.normalisation))
            labels = data.train.labels[indices]
            loss = mixed_loss(logits, labels, mixed, hyperparameters.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            with autocast:  # Muon multiplies matrices.
                optimizer.step()
            scheduler.step()
            loss_sum += loss.detach() * len(indices)
            last = step == steps_per_epoch
            if average and (step % STEPS_BETWEEN_UPDATES == 0 or last):
                average.update(model, step - updated)
                updated = step
            if step % STEPS_BETWEEN_CHECKS == 0 or last:
                _check_finite(loss_sum, epoch, step)
        seconds = time.perf_counter() - started
        evaluated = average.model if average else model
        yield EpochResult(
            epoch=epoch,
            validation_accuracy=accuracy(evaluated, data.validation, data.normalisation),
            training_loss=float(loss_sum) / len(data.train),
            images_per_second=len(data.train) / seconds,
            weights=evaluated.state_dict(),
        )


def mixed_loss(logits: Tensor, labels: Tensor, mixed: Mixed, label_smoothing: float) -> Tensor:
    """Mean cross-entropy with the labels of all that the images are mixed of, by their shares."""
    logits = logits.float()
    if mixed.partners is None or mixed.shares is None:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    own, other = (
        functional.cross_entropy(logits, these, reduction="none", label_smoothing=label_smoothing)
        for these in (labels, labels[mixed.partners])
    )
    return torch.lerp(other, own, mixed.shares).mean()


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
