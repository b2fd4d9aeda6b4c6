"""The default trial: a ResNet trained for some epochs on data that lie on the device."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.augment import augment, draw_first_flips, mirrored_in
from data.mix import mix
from model.average import STEPS_BETWEEN_UPDATES, MovingAverage
from model.evaluate import Normaliser, accuracy, to_float
from model.hyperparameters import Hyperparameters, parse_hyperparameters
from model.layers import LAYERS
from model.memory import give_back, is_out_of_memory
from model.optimizers import make_optimizer, make_scheduler
from model.precision import autocast, compute_dtype, prepare_cuda
from model.resnet import ResNet, initialize, whiten
from model.trial import Diverged, EpochResult, TrialContext

STEPS_BETWEEN_CHECKS = 16
"""How often the loss is looked at on a CPU. A GPU would have to wait at each look: there it is
after each epoch."""
FIRST_SCALE = 2.0**10
"""Of fp16's gradients. With torch's 2**16 the first steps overflow, and are skipped."""
SMALLEST_PART = 8
"""Images. The most in a part of a batch that does not fit into a GPU's memory is halved to no less
than this."""
MOST_GRAPHS = 64
"""That a process compiles, one for each network and size of batch (logit scale and batch-norm
momentum are part of it); others then run as they are. Torch's own limit is 8."""

logger = logging.getLogger(__name__)


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
        hyperparameters.stem,
    )
    initialize(model, hyperparameters.initialization)
    return model


def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
    """Train a ResNet on `context.data` and yield a result after each epoch.

    The same parameters and context give the same results on a CPU with the same number of threads,
    on a GPU with `context.deterministic`; and so do the epochs that are left if `context.resume`
    is the `state` of an earlier result.

    Raises:
        Diverged: the loss is no longer finite.
        ValueError: a parameter is not one of `Hyperparameters`, or impossible.
    """
    training = _Training(parse_hyperparameters(parameters), context)
    data = context.data
    if context.resume:
        training.load_state(context.resume)
    for epoch in range(training.epoch + 1, context.epochs + 1):
        started = time.perf_counter()
        loss = training.train_epoch()
        seconds = time.perf_counter() - started
        evaluated = training.evaluated
        yield EpochResult(
            epoch=epoch,
            validation_accuracy=accuracy(evaluated, data.validation, data.normalisation),
            training_loss=loss,
            images_per_second=len(data.train) / seconds,
            weights=evaluated.state_dict(),
            state=training.state(),
            learning_rate=training.learning_rate,
            fallbacks=training.fallbacks,
        )


class _Training:
    """A model in training, with all of it that changes from epoch to epoch."""

    def __init__(self, hyperparameters: Hyperparameters, context: TrialContext) -> None:
        device, data = context.device, context.data
        if device.type == "cuda":
            prepare_cuda(context.deterministic)
        torch.manual_seed(context.seed)
        self.epoch = 0
        self._hyperparameters, self._context = hyperparameters, context
        self._generator = torch.Generator(device)
        self._normaliser = Normaliser(data.normalisation, device)
        self._first_flips = draw_first_flips(len(data.train), context.seed, device)
        self._steps_per_epoch = -(-len(data.train) // hyperparameters.batch_size)
        self._part_size = hyperparameters.batch_size
        self._dtype = compute_dtype(context.precision, device)
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=FIRST_SCALE, enabled=self._dtype == torch.float16
        )
        model = build_model(hyperparameters, len(data.classes))
        if hyperparameters.stem == "whitening":
            whiten(model, data.train.images, data.normalisation)
        self._model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(
            hyperparameters.optimizer,
            model,
            hyperparameters.learning_rate,
            hyperparameters.weight_decay,
            hyperparameters.momentum,
        )
        self._scheduler = make_scheduler(
            hyperparameters.schedule,
            self._optimizer,
            context.epochs * self._steps_per_epoch,
            hyperparameters.peak_fraction,
        )
        self._average = MovingAverage(model, hyperparameters.ema) if hyperparameters.ema else None
        self._forward: Callable[[Tensor], Tensor] = self._model
        self._has_compiled = False
        if context.compile:
            try:
                # A network like an earlier trial's uses its graph.
                torch._dynamo.config.recompile_limit = MOST_GRAPHS
                torch._dynamo.config.fail_on_recompile_limit_hit = True  # Else nobody would know.
                self._forward = torch.compile(self._model, dynamic=False)
            except (ImportError, RuntimeError) as error:  # On some Pythons.
                self._go_on_uncompiled(error)

    @property
    def evaluated(self) -> nn.Module:
        """The model, or the average of its weights."""
        return self._average.model if self._average else self._model

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """See `EpochResult.fallbacks`."""
        found = []
        if self._part_size < self._hyperparameters.batch_size:
            found.append(f"batches in parts of {self._part_size} images at most")
        if self._context.compile and self._forward is self._model:
            found.append("not compiled")
        return tuple(found)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def train_epoch(self) -> float:
        """Train on every image once.

        Nothing in it makes a GPU wait for the host, but for reading the loss at the end and, in
        fp16, whether a gradient has overflown.

        Returns:
            The mean loss.
        """
        train, batch_size = self._context.data.train, self._hyperparameters.batch_size
        device = self._context.device
        self.epoch += 1
        self._seed_epoch()
        mirrored = mirrored_in(self.epoch, self._first_flips)
        order = torch.randperm(len(train), device=device, generator=self._generator)
        order_of_images = order.to(train.images.device)
        loss_sum = torch.zeros((), device=device)
        looks = STEPS_BETWEEN_CHECKS if device.type == "cpu" else self._steps_per_epoch
        updated = 0
        self._model.train()
        for step, start in enumerate(range(0, len(train), batch_size), start=1):
            batch = slice(start, start + batch_size)
            images, labels = train.batch(order_of_images[batch], device)
            loss_sum += self._step(images, labels, mirrored[order[batch]]) * len(labels)
            last = step == self._steps_per_epoch
            if self._average and (step % STEPS_BETWEEN_UPDATES == 0 or last):
                self._average.update(self._model, step - updated)
                updated = step
            if step % looks == 0 or last:
                self._check_finite(loss_sum, step)
        return float(loss_sum) / len(train)

    def _seed_epoch(self) -> None:
        # Each epoch draws from its own seed, which the trial's decides: so a resumed trial needs
        # no generator's state, and what others draw between epochs changes nothing.
        seed = (self._context.seed + self.epoch * 0x9E3779B97F4A7C15) % 2**63
        self._generator.manual_seed(seed)
        torch.manual_seed(seed + 1)  # Dropout draws from the global one.

    def _step(self, images: Tensor, labels: Tensor, mirrored: Tensor) -> Tensor:
        chosen = self._hyperparameters
        augmented = augment(
            to_float(images), chosen.augmentation, chosen.color_jitter, self._generator, mirrored
        )
        mixed = mix(augmented, chosen.mixing, self._generator)
        others = None if mixed.partners is None else labels[mixed.partners]
        loss = self._backward(self._normaliser(mixed.images), labels, others, mixed.shares)
        # Muon multiplies matrices.
        with autocast(self._dtype, self._context.device):
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._scheduler.step()
        return loss

    def _backward(
        self, images: Tensor, labels: Tensor, others: Tensor | None, shares: Tensor | None
    ) -> Tensor:
        """The mean loss of a batch, with its gradients; in parts, if it does not fit as a whole.

        Batch norm then sees each part by itself, and its running statistics move with each; all
        else is the same.
        """
        while True:
            size = min(self._part_size, len(images))
            self._optimizer.zero_grad()
            loss = torch.zeros((), device=images.device)
            try:
                # Equal parts: batch norm takes each for as good as any other.
                for part in _equal_parts(len(images), size):
                    loss += self._backward_part(
                        images[part],
                        labels[part],
                        None if others is None else others[part],
                        None if shares is None else shares[part],
                        len(labels[part]) / len(labels),
                    )
                return loss
            except Exception as error:
                full = is_out_of_memory(error)
                # What is compiled is so when it is first used, there and back; and the compiler
                # may want more memory than the network.
                by_compiler = self._forward is not self._model and not (full and self._has_compiled)
                if by_compiler:
                    self._go_on_uncompiled(error)
                elif size <= SMALLEST_PART or not full:
                    raise
            # Not in the except clause, where the error still holds what is to be freed.
            give_back(images.device)
            if by_compiler:
                continue
            self._part_size = max(size // 2, SMALLEST_PART)
            logger.warning(
                "out of memory with %d images at once; going on with %d at once",
                size,
                self._part_size,
            )

    def _go_on_uncompiled(self, error: Exception) -> None:
        reason = str(error).strip().partition("\n")[0]
        logger.warning("the network is not compiled: %s", reason)
        self._forward = self._model

    def _backward_part(
        self,
        images: Tensor,
        labels: Tensor,
        others: Tensor | None,
        shares: Tensor | None,
        weight: float,
    ) -> Tensor:
        with autocast(self._dtype, images.device):
            logits = self._forward(images)
        smoothing = self._hyperparameters.label_smoothing
        loss = mixed_loss(logits, labels, others, shares, smoothing) * weight
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._has_compiled = self._forward is not self._model
        return loss.detach()

    def _check_finite(self, loss_sum: Tensor, step: int) -> None:
        # A sum with one infinite or undefined term is not finite either.
        if not torch.isfinite(loss_sum):
            raise Diverged(
                f"the training loss was no longer finite in epoch {self.epoch}, by step {step}"
            )

    def state(self) -> dict[str, Any]:
        """All that the next epochs depend on; `torch.load(weights_only=True)` can read it."""
        return {
            "epoch": self.epoch,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.state() if self._average else None,
            "part_size": self._part_size,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for kept in self._optimizer.state.values():
            if "mu_product" in kept:
                # NAdam keeps it on the CPU; where it was moved to, each step would wait for it.
                kept["mu_product"] = kept["mu_product"].cpu()
        self._part_size = state["part_size"]
        self._scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # It is empty, if the epochs before were not in fp16.
            self._scaler.load_state_dict(state["scaler"])
        if self._average:
            self._average.load_state(state["average"])


def _equal_parts(count: int, most: int) -> Iterator[slice]:
    """So many in as few parts as hold no more than `most` each; sizes differ by one at most."""
    parts = -(-count // most)
    for index in range(parts):
        yield slice(index * count // parts, (index + 1) * count // parts)


def mixed_loss(
    logits: Tensor,
    labels: Tensor,
    others: Tensor | None,
    shares: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Mean cross-entropy with the labels of all that the images are mixed of, by their shares.

    Args:
        others: the labels of what else is in the images; None if they are not mixed.
        shares: of `labels`; the rest is of `others`.
    """
    logits = logits.float()
    if others is None or shares is None:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    own, other = (
        functional.cross_entropy(logits, these, reduction="none", label_smoothing=label_smoothing)
        for these in (labels, others)
    )
    return torch.lerp(other, own, shares).mean()
