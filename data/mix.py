"""Mixup and cutmix: each image of a batch mixed with another one, and so their labels.

On the device, with random draws for each image. The share of an image in the mixture is uniform in
[0, 1]: Beta(1, 1), which both papers take for CIFAR-10.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

MIXINGS = ("none", "mixup", "cutmix")


@dataclass(frozen=True, slots=True)
class Mixed:
    """A batch of N images, each `shares` itself and the rest another one, or all as they were."""

    images: Tensor
    partners: Tensor | None
    """Shape (N,): which image of the batch the rest is of; None if they are not mixed."""
    shares: Tensor | None
    """Shape (N,), in [0, 1]; None if they are not mixed."""


def mix(images: Tensor, mixing: str, generator: Generator) -> Mixed:
    """Mix a batch.

    Args:
        images: floating point, shape (N, 3, H, W).
        mixing: one of `MIXINGS`.
        generator: on the device of the images.

    Raises:
        ValueError: `mixing` is not known.
    """
    if mixing == "none":
        return Mixed(images, None, None)
    partners = torch.randperm(len(images), device=images.device, generator=generator)
    shares = torch.rand(len(images), device=images.device, generator=generator)
    if mixing == "mixup":
        # Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.
        weights = shares[:, None, None, None].to(images.dtype)
        return Mixed(torch.lerp(images[partners], images, weights), partners, shares)
    if mixing == "cutmix":
        patches = _patches(images, 1 - shares, generator)
        kept = 1 - patches.to(shares.dtype).mean(dim=(1, 2))
        return Mixed(torch.where(patches[:, None], images[partners], images), partners, kept)
    raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}, but is {mixing!r}")


def _patches(images: Tensor, areas: Tensor, generator: Generator) -> Tensor:
    """A rectangle at a random place in each image, as a mask of shape (N, H, W).

    With the proportions of the image, and these areas but for what lies over the edge: Yun et al.,
    "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019.
    """
    inside = []
    for length in images.shape[2:]:
        centres = torch.randint(length, (len(images),), device=images.device, generator=generator)
        halves = (length * areas.sqrt()).long() // 2
        places = torch.arange(length, device=images.device)
        inside.append(
            (places >= (centres - halves)[:, None]) & (places < (centres + halves)[:, None])
        )
    rows, columns = inside
    return rows[:, :, None] & columns[:, None, :]
