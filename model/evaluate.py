"""Accuracy and class probabilities of a model on uint8 images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.dataset import Normalisation, Split
from model.memory import give_back, is_out_of_memory
from model.precision import without_tf32

GPU_BATCH_SIZE = 1000  # images; fewer, if they do not fit into its memory
CPU_BATCH_SIZE = 128  # more do not fit into its caches, and are slower


class Normaliser:
    """`normalise` with its constants on a device: to send them for each batch takes time."""

    def __init__(
        self,
        normalisation: Normalisation,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        constants = torch.tensor([normalisation.mean, normalisation.std], dtype=dtype)
        self._mean, self._std = constants.to(device)[..., None, None].unbind()

    def __call__(self, images: Tensor) -> Tensor:
        # Not before: what is done with images whose channels lie beside each other is several times
        # slower, since three of them do not fill a vector.
        normalised = (images - self._mean) / self._std
        return normalised.contiguous(memory_format=torch.channels_last)


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Float images of shape (N, 3, H, W) in [0, 1] to zero mean and unit variance.

    In the memory format that convolutions prefer.
    """
    return Normaliser(normalisation, images.device, images.dtype)(images)


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor, normalisation: Normalisation) -> Tensor:
    """Logits of shape (N, classes) for N > 0 uint8 images of shape (N, 3, 32, 32), in batches.

    In fp32, and not in TF32, whatever the training used, so that another machine finds the same
    accuracy.
    """
    training, device = model.training, next(model.parameters()).device
    normaliser = Normaliser(normalisation, device)
    model.eval()
    size = GPU_BATCH_SIZE if device.type == "cuda" else CPU_BATCH_SIZE
    batches: list[Tensor] = []
    try:
        with without_tf32():
            while (done := sum(map(len, batches))) < len(images):
                try:
                    batch = to_float(images[done : done + size].to(device))
                    batches.append(model(normaliser(batch)))
                    continue
                except Exception as error:
                    if size == 1 or not is_out_of_memory(error):
                        raise
                # Not in the except clause, where the error still holds what is to be freed.
                give_back(device)
                size //= 2
    finally:
        model.train(training)
    return torch.cat(batches)


def accuracy(model: nn.Module, split: Split, normalisation: Normalisation) -> float:
    """The fraction of images whose most likely class is their label, in [0, 1]; NaN of none."""
    if not len(split):
        return math.nan
    return _fraction(logits(model, split.images, normalisation), split.labels)


@dataclass(frozen=True, slots=True)
class Accuracies:
    """In [0, 1]."""

    plain: float
    """Of the images as they are."""
    with_flips: float
    """Of the mean of the logits of each image and of its mirror image."""


def accuracies(model: nn.Module, split: Split, normalisation: Normalisation) -> Accuracies:
    """Accuracy with and without averaging over flips, as in Page, "How to Train Your ResNet", 2018.

    Averaging takes twice the time of a prediction.
    """
    if not len(split):
        return Accuracies(math.nan, math.nan)
    plain = logits(model, split.images, normalisation)
    mirrored = logits(model, split.images.flip(3), normalisation)
    return Accuracies(
        _fraction(plain, split.labels), _fraction((plain + mirrored) / 2, split.labels)
    )


def _fraction(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels.to(logits.device)).double().mean())
