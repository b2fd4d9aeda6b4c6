"""What a classifier's probabilities are worth: figures for each class, calibration, mistakes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

BINS = 15
"""Of confidence, equally wide; so Guo et al., "On Calibration of Modern Neural Networks", 2017."""
Z = 1.959964
"""Of a confidence interval of 95%."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Of one class, or the mean over all; in [0, 1], and 0 where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Bin:
    """The predictions whose confidence is in [low, high), and in the last one also 1."""

    low: float
    high: float
    images: int
    confidence: float | None
    """Their mean probability of the predicted class; None of no images."""
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether a model is right as often as it says."""

    error: float
    """The expected calibration error: over the bins, by their images, |accuracy - confidence|."""
    confidence: float
    """The mean, of all images."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Metrics:
    accuracy: float
    confusion: tuple[tuple[int, ...], ...]
    """How many images of each class (row) were taken for each class (column)."""
    classes: tuple[ClassFigures, ...]
    macro: ClassFigures
    """The mean over the classes, each of the same weight; without those that no image is of and
    none was taken for."""
    calibration: Calibration


def measure(probabilities: Tensor, labels: Tensor) -> Metrics:
    """All figures of a set of predictions.

    Args:
        probabilities: of shape (N, classes), N > 0.
        labels: int64 of shape (N,).
    """
    count = probabilities.shape[1]
    figures = (multiclass_precision, multiclass_recall, multiclass_f1_score)
    each = [figure(probabilities, labels, count, average="none").tolist() for figure in figures]
    means = [float(figure(probabilities, labels, count, average="macro")) for figure in figures]
    confusion = multiclass_confusion_matrix(probabilities, labels, count)
    # What is exactly 1 has a bin of its own there.
    below_one = probabilities.clamp(max=1 - torch.finfo(probabilities.dtype).eps)
    return Metrics(
        accuracy=float(multiclass_accuracy(probabilities, labels, count, average="micro")),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        classes=tuple(ClassFigures(*of_class) for of_class in zip(*each, strict=True)),
        macro=ClassFigures(*means),
        calibration=Calibration(
            error=float(multiclass_calibration_error(below_one, labels, count, n_bins=BINS)),
            confidence=float(probabilities.amax(dim=1).double().mean()),
            bins=_bins(probabilities, labels),
        ),
    )


def _bins(probabilities: Tensor, labels: Tensor) -> tuple[Bin, ...]:
    confidences, predicted = probabilities.max(dim=1)
    edges = torch.linspace(0, 1, BINS + 1)
    places = torch.bucketize(confidences.cpu(), edges[1:-1], right=True)
    right = (predicted == labels).cpu().double()
    counts = torch.bincount(places, minlength=BINS)
    sums = [
        torch.bincount(places, weights, BINS) / counts
        for weights in (confidences.cpu().double(), right)
    ]
    return tuple(
        Bin(low, high, images, *((confidence, accuracy) if images else (None, None)))
        for low, high, images, confidence, accuracy in zip(
            edges[:-1].tolist(),
            edges[1:].tolist(),
            counts.tolist(),
            *(values.tolist() for values in sums),
            strict=True,
        )
    )


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that was taken for something else."""

    index: int
    label: int
    predicted: int
    probability: float
    """Of the predicted class, in [0, 1]."""
    probability_of_label: float


def most_confident_mistakes(
    probabilities: Tensor, labels: Tensor, count: int
) -> tuple[Mistake, ...]:
    """Those with the highest probability of a wrong class, the highest first."""
    confidences, predicted = probabilities.max(dim=1)
    order = confidences.argsort(descending=True, stable=True)
    wrong = order[(predicted != labels)[order]][:count]
    return tuple(
        Mistake(
            index,
            int(labels[index]),
            int(predicted[index]),
            float(confidences[index]),
            float(probabilities[index, labels[index]]),
        )
        for index in wrong.tolist()
    )


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same images: the first's accuracy minus the second's."""

    first_alone: int
    """Images that the first alone got right."""
    second_alone: int
    difference: float
    low: float
    """Of the 95% interval: Agresti and Min, "Simple improved confidence intervals for comparing
    matched proportions", 2005."""
    high: float
    p: float
    """McNemar's exact test: how likely a split at least as uneven is if neither is better."""


def compare(first_right: Sequence[bool], second_right: Sequence[bool]) -> Paired:
    """Compare two models by the images that only one of them got right.

    Args:
        first_right: of each image, whether the first model was right; at least one image.
    """
    pairs = list(zip(first_right, second_right, strict=True))
    images, first, second = len(pairs), pairs.count((True, False)), pairs.count((False, True))
    # Half an image more in each of the four cells: else no interval where both always agree.
    apart, both = (first - second) / (images + 2), (first + second + 1) / (images + 2)
    half = Z * math.sqrt((both - apart**2) / (images + 2))
    p = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    difference = (first - second) / images
    return Paired(first, second, difference, apart - half, apart + half, p)


def epochs_to(accuracies: Sequence[float], fraction: float) -> int | None:
    """The first epoch whose accuracy is at least this fraction of the last one's.

    Returns:
        None if there is no epoch, or the last accuracy is no number.
    """
    if not accuracies:
        return None
    wanted = fraction * accuracies[-1]
    reached = (epoch for epoch, found in enumerate(accuracies, start=1) if found >= wanted)
    return next(reached, None)
