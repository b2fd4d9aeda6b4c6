"""Accuracy and class probabilities of a model on uint8 images."""

import math

import torch
from torch import Tensor, nn

from data.dataset import Normalisation, Split

BATCH_SIZE = 1000  # images; fewer, if they do not fit into a GPU's memory


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Float images of shape (N, 3, H, W) in [0, 1] to zero mean and unit variance."""
    constants = torch.tensor([normalisation.mean, normalisation.std], dtype=images.dtype)
    # Else a GPU would be waited for.
    mean, std = constants.to(images.device, non_blocking=True)[..., None, None].unbind()
    return (images - mean) / std


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1], in the memory format that convolutions prefer."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 255


@torch.inference_mode()
def logits(
    model: nn.Module, images: Tensor, normalisation: Normalisation, with_flips: bool = False
) -> Tensor:
    """Logits of shape (N, classes) for uint8 images of shape (N, 3, 32, 32), in batches.

    In fp32 whatever the training used, so that another machine finds the same accuracy.

    Args:
        with_flips: the mean over each image and its mirror image, as in Page, "How to Train Your
            ResNet", 2018.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    size = BATCH_SIZE
    batches: list[Tensor] = []
    while (done := sum(map(len, batches))) < len(images):
        try:
            inputs = normalise(to_float(images[done : done + size].to(device)), normalisation)
            outputs = model(inputs)
            batches.append((outputs + model(inputs.flip(3))) / 2 if with_flips else outputs)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
    model.train(training)
    return torch.cat(batches)


def accuracy(
    model: nn.Module, split: Split, normalisation: Normalisation, with_flips: bool = False
) -> float:
    """The fraction of images whose most likely class is their label, in [0, 1]; NaN of none."""
    if not len(split):
        return math.nan
    predictions = logits(model, split.images, normalisation, with_flips).argmax(dim=1)
    return float((predictions == split.labels.to(predictions.device)).double().mean())
