"""The validation split and the normalisation constants: the same for all workers and trials."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.dataset import Dataset, Normalisation, Split
from data.errors import UserError


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a trial sees of a data set. The test split is not in it."""

    train: Split
    validation: Split
    classes: tuple[str, ...]
    normalisation: Normalisation

    def to(self, device: torch.device) -> "TrainingData":
        return TrainingData(
            self.train.to(device), self.validation.to(device), self.classes, self.normalisation
        )


def split_for_training(dataset: Dataset, validation_fraction: float, seed: int) -> TrainingData:
    """Set a stratified validation split aside from the training images.

    Raises:
        UserError: a class has fewer than two images.
    """
    try:
        kept, held_out = stratified_split(dataset.train.labels, validation_fraction, seed)
    except UserError as error:
        raise UserError(f"{dataset.source}: {error}") from error
    train = dataset.train.select(kept)
    return TrainingData(
        train=train,
        validation=dataset.train.select(held_out),
        classes=dataset.classes,
        normalisation=dataset.normalisation or normalisation_of(train.images),
    )


def whole_for_training(dataset: Dataset) -> TrainingData:
    """All training images to train on, and an empty validation split."""
    none = torch.empty(0, dtype=torch.int64)
    return TrainingData(
        train=dataset.train,
        validation=dataset.train.select(none),
        classes=dataset.classes,
        normalisation=dataset.normalisation or normalisation_of(dataset.train.images),
    )


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide indices in two so that each class is divided in the same proportion.

    Args:
        labels: int64 of shape (N,).
        fraction: of each class that goes to the second part: at least one image, never all.
        seed: the same seed gives the same parts.

    Returns:
        Two int64 tensors of indices in ascending order, together 0 … N-1.

    Raises:
        UserError: a class has fewer than two images.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, held_out = [], []
    for label in torch.unique(labels):
        indices = (labels == label).nonzero().flatten()
        if len(indices) < 2:
            raise UserError(
                f"class number {int(label)} has one image; two are needed to split one off"
            )
        count = min(max(round(len(indices) * fraction), 1), len(indices) - 1)
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        held_out.append(shuffled[:count])
        kept.append(shuffled[count:])
    return torch.cat(kept).sort().values, torch.cat(held_out).sort().values


def normalisation_of(images: Tensor) -> Normalisation:
    """Mean and standard deviation of each channel of uint8 images of shape (N, 3, H, W)."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(dim=1):
        # A histogram is exact, and needs no floating-point copy of the whole data set.
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(float(mean))
        # One grey level: images of a single colour must not divide by zero.
        stds.append(max(float(variance.sqrt()), 1 / 255))
    return Normalisation(tuple(means), tuple(stds))
