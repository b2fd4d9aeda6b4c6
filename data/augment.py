"""Augmentation of a whole batch at once, on the device, with random draws for each image.

Every function takes and gives floating-point images of shape (N, 3, H, W) in [0, 1], on any
device, and draws from a generator on that device.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional

from data.trivial import trivial_augment

CROP_SHIFT = 4  # pixels; as in He et al. 2016, section 4.2
SMALL_CROP_SHIFT = 2  # pixels; as in airbench (Jordan 2024), for ten epochs
CUTOUT_SIZE = 8  # pixels; half of what DeVries & Taylor 2017 use for 200 epochs
RESIZED_CROP_AREA = (0.08, 1.0)  # of the image; torchvision's RandomResizedCrop
RESIZED_CROP_RATIO = (3 / 4, 4 / 3)  # width to height; torchvision's RandomResizedCrop
JITTER = 0.2  # brightness, contrast and saturation each times 0.8 to 1.2

ALTERNATING_FLIP = "alternating-flip"


def is_augmentation(value: object) -> bool:
    """Whether it is `none`, or some of `PARTS` with + between them, each once."""
    if value == "none":
        return True
    parts = value.split("+") if isinstance(value, str) else []
    return bool(parts) and len(set(parts)) == len(parts) and set(parts) <= set(PARTS)


def augment(
    images: Tensor,
    augmentation: str,
    color_jitter: bool,
    generator: Generator,
    mirrored: Tensor,
) -> Tensor:
    """Augment a batch.

    Args:
        images: floating point, shape (N, 3, H, W), in [0, 1].
        augmentation: `none`, or some of `PARTS` with + between them, applied from left to right.
        color_jitter: whether brightness, contrast and saturation are varied as well.
        generator: on the device of the images.
        mirrored: shape (N,), which images alternating-flip mirrors; see `mirrored_in`.

    Returns:
        New images of the same shape, dtype and range.

    Raises:
        KeyError: `augmentation` is not known.
    """
    if augmentation != "none":
        for part in augmentation.split("+"):
            if part == ALTERNATING_FLIP:
                images = alternating_flip(images, mirrored)
            else:
                images = RANDOM_PARTS[part](images, generator)
    return jitter(images, generator) if color_jitter else images


def _uniform(images: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    """One number an image, shape (N,)."""
    draws = torch.rand(len(images), device=images.device, generator=generator)
    return draws * (high - low) + low


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    mirrored = _uniform(images, 0, 1, generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def draw_first_flips(count: int, seed: int, device: torch.device) -> Tensor:
    """Which images of a data set alternating flip mirrors in epoch 1: half of them, by chance.

    From a generator of its own, so that a resumed trial finds the same ones.
    """
    generator = Generator(device).manual_seed(seed)
    return torch.rand(count, device=device, generator=generator) < 0.5


def mirrored_in(epoch: int, first_flips: Tensor) -> Tensor:
    """Which images alternating flip mirrors in an epoch (from 1): each in every second one.

    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3.6: so each two epochs
    see every image both ways, of which a random flip shows half of the images only one.
    """
    return first_flips if epoch % 2 else ~first_flips


def alternating_flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror these images left to right, and the others not."""
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def crop(images: Tensor, generator: Generator, shift: int = CROP_SHIFT) -> Tensor:
    """Shift each image by up to `shift` pixels each way; the edge is filled by reflection."""
    count, _, height, width = images.shape
    device = images.device
    padded = functional.pad(images, [shift] * 4, mode="reflect")
    shifts = torch.randint(2 * shift + 1, (2, count, 1), device=device, generator=generator)
    # All crops that there are, of which none is copied but one of each image: as a whole, which is
    # faster than pixel by pixel.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    top, left = shifts[..., 0]
    return crops[torch.arange(count, device=device), :, top, left]


def cutout(images: Tensor, generator: Generator) -> Tensor:
    """Grey out a square of `CUTOUT_SIZE` pixels, which may reach over the edge, in each image.

    DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    """
    count, _, height, width = images.shape
    device = images.device
    top = torch.randint(height, (count, 1), device=device, generator=generator) - CUTOUT_SIZE // 2
    left = torch.randint(width, (count, 1), device=device, generator=generator) - CUTOUT_SIZE // 2
    rows = torch.arange(height, device=device) - top
    columns = torch.arange(width, device=device) - left
    in_rows = (rows >= 0) & (rows < CUTOUT_SIZE)
    in_columns = (columns >= 0) & (columns < CUTOUT_SIZE)
    square = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    grey = images.mean(dim=(0, 2, 3), keepdim=True)
    return torch.where(square, grey, images)


def resized_crop(images: Tensor, generator: Generator) -> Tensor:
    """Take a rectangle of random place, area and shape of each image and scale it to full size."""
    area = _uniform(images, *RESIZED_CROP_AREA, generator)
    low, high = map(math.log, RESIZED_CROP_RATIO)
    ratio = _uniform(images, low, high, generator).exp()
    # Sides as fractions of the image, of which 1 is the most.
    width = (area * ratio).sqrt().clamp(max=1)
    height = (area / ratio).sqrt().clamp(max=1)
    x = (1 - width) * _uniform(images, -1, 1, generator)
    y = (1 - height) * _uniform(images, -1, 1, generator)
    zero = torch.zeros_like(x)
    transforms = torch.stack(
        [torch.stack([width, zero, x], dim=1), torch.stack([zero, height, y], dim=1)], dim=1
    )
    grid = functional.affine_grid(transforms, list(images.shape), align_corners=False)
    resized = functional.grid_sample(
        images, grid.to(images.dtype), padding_mode="reflection", align_corners=False
    )
    return resized.clamp(0, 1)


def jitter(images: Tensor, generator: Generator) -> Tensor:
    """Vary the brightness, contrast and saturation of each image by up to `JITTER`."""

    def factor() -> Tensor:
        return _uniform(images, 1 - JITTER, 1 + JITTER, generator)[:, None, None, None]

    images = (images * factor()).clamp(0, 1)
    mean = _grey(images).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * factor()).clamp(0, 1)
    grey = _grey(images)
    return (grey + (images - grey) * factor()).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """The brightness by ITU-R BT.601, as in torchvision and Pillow; shape (N, 1, H, W)."""
    return 0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]


def small_crop(images: Tensor, generator: Generator) -> Tensor:
    """`crop` by up to `SMALL_CROP_SHIFT` pixels."""
    return crop(images, generator, SMALL_CROP_SHIFT)


RANDOM_PARTS: Mapping[str, Callable[[Tensor, Generator], Tensor]] = {
    "flip": flip,
    "crop": crop,
    "crop2": small_crop,
    "resized-crop": resized_crop,
    "trivial": trivial_augment,
    "cutout": cutout,
}
PARTS = (*RANDOM_PARTS, ALTERNATING_FLIP)
"""What an augmentation can be made of."""
