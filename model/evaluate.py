"""Accuracy and class probabilities of a model on uint8 images."""

import math

import torch
from torch import Tensor, nn

from data.dataset import Normalisation, Split

BATCH_SIZE = 1000  # images


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Float images of shape (N, 3, H, W) in [0, 1] to zero mean and unit variance."""
    mean = torch.tensor(normalisation.mean, device=images.device, dtype=images.dtype)
    std = torch.tensor(normalisation.std, device=images.device, dtype=images.dtype)
    return (images - mean[:, None, None]) / std[:, None, None]


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1], in the memory format that convolutions prefer."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 255


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor, normalisation: Normalisation) -> Tensor:
    """Logits of shape (N, classes) for uint8 images of shape (N, 3, 32, 32), in batches.

    In fp32 whatever the training used, so that another machine finds the same accuracy.
    """
    training = model.training
    model.eval()
    batches = [
        model(normalise(to_float(batch), normalisation))
        for batch in torch.split(images, BATCH_SIZE)
    ]
    model.train(training)
    return torch.cat(batches)


def accuracy(model: nn.Module, split: Split, normalisation: Normalisation) -> float:
    """The fraction of images whose most likely class is their label, in [0, 1]; NaN of none."""
    if not len(split):
        return math.nan
    predictions = logits(model, split.images, normalisation).argmax(dim=1)
    return float((predictions == split.labels).double().mean())
