"""Evaluating trained models on the test images, all figures of it as plain data."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from data.corrupt import CORRUPTIONS, SEVERITIES, corrupted
from data.dataset import Dataset, Split
from model.evaluate import Accuracies, accuracies, accuracy, logits
from model.exported import Classifier
from model.features import FeatureMaps, feature_maps
from model.metrics import (
    Metrics,
    Mistake,
    Paired,
    compare,
    epochs_to,
    measure,
    most_confident_mistakes,
)
from model.speed import Speed, measure_speed
from search.device import device_name

SEED = 0
"""Of the noise and the places of what is made worse."""
QUERY_SIZES = (1, 256)  # images
MISTAKES = 24
CONVERGED = (0.8, 0.9, 0.95)
"""Of the final accuracy."""
STEPS = 2 + len(QUERY_SIZES) + len(CORRUPTIONS) * len(SEVERITIES)
"""Of the evaluation of one model, each of which is told."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to evaluate."""

    name: str
    """No other of the same evaluation has it."""
    classifier: Classifier
    description: Mapping[str, Any]
    """Its `trial.json`."""
    weights: str
    """The SHA-256 of its `model.safetensors`."""


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """The image whose feature maps are shown."""

    name: str
    pixels: Tensor
    """uint8, of shape (3, 32, 32)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is known of one model."""

    subject: Subject
    test: Accuracies
    metrics: Metrics
    robustness: Mapping[str, tuple[float, ...]]
    """For each corruption, the accuracy at each severity."""
    speeds: tuple[Speed, ...]
    device: str
    threads: int
    mistakes: tuple[Mistake, ...]
    features: tuple[FeatureMaps, ...]
    probabilities: tuple[float, ...]
    """Of the chosen image, for each class."""
    right: tuple[bool, ...]
    """Of each test image."""

    @property
    def corrupted(self) -> float:
        """The mean accuracy over all corruptions and severities."""
        return statistics.fmean(value for curve in self.robustness.values() for value in curve)

    @property
    def curve(self) -> tuple[float, ...]:
        """The validation accuracy after each epoch of the search.

        If the model was trained anew after it, that of the model before.
        """
        description = self.subject.description
        searched = description.get("before") or description
        return tuple(searched["validation_accuracy_per_epoch"])


def evaluate(
    subject: Subject,
    test: Split,
    image: ChosenImage,
    device: torch.device,
    tell: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure all that is measured of a model; it is moved to the device.

    Args:
        test: images of its classes, at least one.
        tell: called `STEPS` times, with what has been done.
    """
    model, normalisation = subject.classifier.model.to(device), subject.classifier.normalisation
    test = test.to(device)
    found = accuracies(model, test, normalisation)
    probabilities = logits(model, test.images, normalisation).softmax(dim=1)
    tell("test images")
    robustness: dict[str, list[float]] = {}
    for corruption in CORRUPTIONS:
        robustness[corruption] = []
        for severity in SEVERITIES:
            worse = Split(corrupted(test.images, corruption, severity, SEED), test.labels)
            robustness[corruption].append(accuracy(model, worse, normalisation))
            tell(f"{corruption}, severity {severity}")
    speeds = []
    for size in QUERY_SIZES:
        # Of fewer images, some are asked for more than once.
        query = test.images[torch.arange(size) % len(test)].cpu()
        speeds.append(measure_speed(model, query, normalisation))
        tell(f"queries of {size}")
    features = feature_maps(model, image.pixels, normalisation)
    of_image = logits(model, image.pixels[None], normalisation).softmax(dim=1)[0]
    tell("feature maps")
    return Evaluation(
        subject=subject,
        test=found,
        metrics=measure(probabilities, test.labels),
        robustness={name: tuple(curve) for name, curve in robustness.items()},
        speeds=tuple(speeds),
        device=device_name(device),
        threads=torch.get_num_threads(),
        mistakes=most_confident_mistakes(probabilities, test.labels, MISTAKES),
        features=features,
        probabilities=tuple(of_image.tolist()),
        right=tuple((probabilities.argmax(dim=1) == test.labels).tolist()),
    )


def paired(evaluations: Sequence[Evaluation]) -> Paired | None:
    """The comparison of two models; None of one."""
    return compare(evaluations[0].right, evaluations[1].right) if len(evaluations) == 2 else None


def as_document(
    evaluations: Sequence[Evaluation], dataset: Dataset, image: ChosenImage
) -> dict[str, Any]:
    """A form for `json.dumps`; see the dataclasses for the meaning of each key."""
    found = paired(evaluations)
    return {
        "data": {
            "source": dataset.source,
            "digest": dataset.digest,
            "test_images": len(dataset.test),
            "classes": list(dataset.classes),
        },
        "corruption_seed": SEED,
        "image": image.name,
        "models": [_of_model(item, dataset) for item in evaluations],
        "comparison": asdict(found) if found else None,
    }


def _of_model(item: Evaluation, dataset: Dataset) -> dict[str, Any]:
    metrics, description = item.metrics, item.subject.description
    return {
        "name": item.subject.name,
        "study": description["study"],
        "trial": description["trial"],
        "weights": item.subject.weights,
        "trained_on": description.get("trained_on"),
        "validation_fraction": description["data"].get("validation_fraction"),
        "parameters": description["parameters"],
        "test_accuracy": item.test.plain,
        "test_accuracy_with_flips": item.test.with_flips,
        "confusion_matrix": [list(row) for row in metrics.confusion],
        "classes": [
            {"class": name, "images": sum(row), **asdict(figures)}
            for name, row, figures in zip(
                dataset.classes, metrics.confusion, metrics.classes, strict=True
            )
        ],
        "macro": asdict(metrics.macro),
        "calibration": asdict(metrics.calibration),
        "robustness": {name: list(curve) for name, curve in item.robustness.items()},
        "mean_accuracy_corrupted": item.corrupted,
        "validation_accuracy_per_epoch": list(item.curve),
        "epochs_to_share_of_final_accuracy": {
            f"{share:.0%}": epochs_to(item.curve, share) for share in CONVERGED
        },
        "training": {
            key: description.get(key) for key in ("training_seconds", "images_per_second")
        },
        "queries": {
            "device": item.device,
            "threads": item.threads,
            "sizes": [
                {**asdict(speed), "images_per_second": speed.images_per_second}
                for speed in item.speeds
            ],
        },
        "most_confident_mistakes": [
            {
                **asdict(mistake),
                "label": dataset.classes[mistake.label],
                "predicted": dataset.classes[mistake.predicted],
            }
            for mistake in item.mistakes
        ],
        "probabilities_of_image": dict(zip(dataset.classes, item.probabilities, strict=True)),
        "feature_maps": [
            {
                "part": part.part,
                "shape": list(part.maps.shape),
                "mean": float(part.maps.mean()),
                "dead_channels": part.dead,
            }
            for part in item.features
        ],
    }
