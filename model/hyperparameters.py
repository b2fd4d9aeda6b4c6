"""The hyperparameters of the default trial: names, the notebook's values, what is possible.

PyTorch is imported only where a value is checked: a misspelt name is refused without.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """All that a study file's `[space]` can name. The defaults are the notebook's configuration.

    Raises:
        ValueError: a value is impossible; the message names it.
    """

    learning_rate: float = 1e-3
    """The schedule's highest."""
    optimizer: str = "adam"
    """sgd (Nesterov), adam, adamw, rmsprop, adagrad, adadelta, adamax, nadam, lion or muon."""
    momentum: float = 0.9
    """Of sgd and muon; the others have their usual betas."""
    schedule: str = "constant"
    """constant, one-cycle (linear up and down) or one-cycle-cosine, over the trial's steps."""
    peak_fraction: float = 0.25
    """Of all steps, before the one-cycle schedules' peak; 0 is a start at the peak."""
    batch_size: int = 64
    """images"""
    weight_decay: float = 0.0
    """Of filters and of the classifier's weights; none of batch-norm parameters and biases."""
    label_smoothing: float = 0.0
    """The share of each target that is spread over all classes."""
    ema: float = 0.0
    """Decay a step of the weights' moving average, which is evaluated and kept; 0 is none."""
    augmentation: str = "flip+resized-crop"
    """none, or parts with + between them: flip, alternating-flip (every second epoch), crop (by up
    to 4 pixels), crop2 (2), resized-crop, trivial (TrivialAugment), cutout."""
    color_jitter: bool = False
    """Whether brightness, contrast and saturation are varied as well."""
    mixing: str = "none"
    """none, mixup or cutmix."""
    depth: int = 18
    """18, 34 or 50."""
    width: int = 64
    """Channels of the first stage."""
    stem: str = "convolution"
    """convolution, or whitening: before it fixed filters that whiten the training images."""
    dropout: float = 0.0
    """Before the classifier."""
    layers: str = "torch"
    """torch (of `torch.nn`) or scratch (of `model/layers.py`)."""
    pooling: str = "max"
    """Before the classifier: max or average."""
    logit_scale: float = 1.0
    """A factor of the classifier's output."""
    initialization: str = "default"
    """default (torch's), zero-residual or dirac."""
    batch_norm_momentum: float = 0.1
    """torch's: the weight of the latest batch in the running statistics."""

    def __post_init__(self) -> None:
        from data.augment import PARTS, is_augmentation
        from data.mix import MIXINGS
        from model.layers import LAYERS
        from model.optimizers import OPTIMIZERS, SCHEDULES
        from model.resnet import BLOCKS_PER_STAGE, INITIALIZATIONS, POOLINGS, STEMS

        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("mixing", self.mixing, MIXINGS)
        _check_choice("depth", self.depth, BLOCKS_PER_STAGE)
        _check_choice("stem", self.stem, STEMS)
        _check_choice("layers", self.layers, LAYERS)
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_choice("initialization", self.initialization, INITIALIZATIONS)
        if not is_augmentation(self.augmentation):
            raise ValueError(
                f"augmentation must be one of none, {', '.join(PARTS)}, or several of these with + "
                f"between them, but is {self.augmentation!r}"
            )
        if not isinstance(self.color_jitter, bool):
            raise ValueError(f"color_jitter must be true or false, but is {self.color_jitter!r}")
        for name in ("batch_size", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, but is {value!r}")
        for name, low, high in (
            ("learning_rate", 0.0, float("inf")),
            ("momentum", 0.0, 1.0),
            ("peak_fraction", 0.0, 1.0),
            ("weight_decay", 0.0, float("inf")),
            ("label_smoothing", 0.0, 1.0),
            ("ema", 0.0, 1.0),
            ("dropout", 0.0, 1.0),
            ("logit_scale", 1e-3, 1e3),
            ("batch_norm_momentum", 1e-3, 1.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, but is {value!r}")
            if not low <= value < high:
                raise ValueError(f"{name} must be from {low:g} to below {high:g}, but is {value}")


def _check_choice(name: str, value: object, choices: Collection[Any]) -> None:
    if value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, but is {value!r}")


HYPERPARAMETER_NAMES = tuple(field.name for field in fields(Hyperparameters))
FRACTIONAL = frozenset(field.name for field in fields(Hyperparameters) if field.type is float)
"""Those that are not whole numbers or choices."""
NOTEBOOK: Mapping[str, Any] = {field.name: field.default for field in fields(Hyperparameters)}
"""The configuration that the project began with: every study's own baseline."""
REFERENCE: Mapping[str, Any] = {
    "optimizer": "muon",
    "learning_rate": 0.05,
    "momentum": 0.6,
    "schedule": "one-cycle",
    "batch_size": 64,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "augmentation": "alternating-flip+crop2",
    "pooling": "average",
}
"""What is known to be good for ten epochs, which every search tries second. All else as in the
notebook's.

Well ahead of the usual recipes on the images that ship and on all of CIFAR-10; there twice the
batch is better still, which is the third trial of the study `cifar10`. How they were found is in
`model/README.md`."""


def parse_hyperparameters(parameters: Mapping[str, Any]) -> Hyperparameters:
    """Check a mapping and fill in the notebook's values.

    Raises:
        ValueError: a name is unknown or a value impossible; the message says what would do.
    """
    for name in parameters:
        check_name(name)
    return Hyperparameters(**parameters)


def check_name(name: str) -> None:
    """Check a name alone.

    Raises:
        ValueError: it is unknown; the message says which are known.
    """
    if name not in HYPERPARAMETER_NAMES:
        known = ", ".join(HYPERPARAMETER_NAMES)
        raise ValueError(f"unknown hyperparameter {name!r}; known are {known}")
