"""Filters that whiten: what they make of images has no correlations, and unit variance.

Page, "How to Train Your ResNet 8: Bag of Tricks", 2019 (3x3 patches); with each filter's negative,
for a ReLU cuts one half of either off, as in airbench (Jordan, "94% on CIFAR-10 in 3.29 Seconds on
a Single GPU", 2024; 2x2 patches).
"""

import torch
from torch import Tensor
from torch.nn import functional

from data.dataset import Normalisation
from model.evaluate import normalise, to_float

SIZE = 3
"""Pixels. As the stem that it precedes has, and odd, so that padding keeps an image's size."""
FILTERS = 2 * 3 * SIZE**2
EPSILON = 1e-2
"""Added to the variances: what varies less is taken for noise. Page's. Of the JPEG images that ship
12 of the 27 variances are below 2e-3, the largest being 21; with airbench's 5e-4, which is for 2x2
patches, the training loss was higher (width 8, four epochs, four of five seeds)."""
MOST_IMAGES = 2000
IMAGES_AT_ONCE = 250
"""So that their patches take some 50 MB."""


def whitening_filters(images: Tensor, normalisation: Normalisation) -> Tensor:
    """The eigenvectors of the covariance of the patches of images, and then their negatives.

    Each is divided by the root of its eigenvalue (and `EPSILON`); the largest eigenvalue is first.
    As in both sources no mean is subtracted, which is near to 0 in normalised images. Computed on
    the CPU in float64; the element of a positive one that is furthest from 0 is above it. So the
    same images have the same filters each time.

    Args:
        images: uint8 of shape (N, 3, H, W). Of many, at most `MOST_IMAGES`, evenly spaced.

    Returns:
        Shape (`FILTERS`, 3, `SIZE`, `SIZE`), float32, on the CPU.
    """
    chosen = images[:: -(-len(images) // MOST_IMAGES)].cpu()
    covariance = torch.zeros(FILTERS // 2, FILTERS // 2, dtype=torch.float64)
    for part in torch.split(chosen, IMAGES_AT_ONCE):
        patches = functional.unfold(normalise(to_float(part), normalisation).double(), SIZE)
        covariance += (patches @ patches.mT).mean(dim=0) / patches.shape[2] * len(part)
    covariance /= len(chosen)
    variances, vectors = torch.linalg.eigh(covariance)
    rows = vectors.T.flip(0)
    furthest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    whitening = rows * furthest.sign() / (variances.flip(0)[:, None] + EPSILON).sqrt()
    return torch.cat((whitening, -whitening)).float().view(FILTERS, 3, SIZE, SIZE)
