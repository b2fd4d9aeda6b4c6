"""TrivialAugment (wide) of a whole batch at once: one random operation of random strength an image.

Müller & Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021, with
operations, strengths and nearest-neighbour sampling as in torchvision's `TrivialAugmentWide`.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

OPERATIONS = (
    *("identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness"),
    *("color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
STRENGTHS = 31
LARGEST_SHEAR = 0.99
LARGEST_TRANSLATION = 32  # pixels
LARGEST_ROTATION = math.radians(135)
LARGEST_CHANGE = 0.99  # of brightness, color, contrast and sharpness
LOST_BITS = 6  # of 8, at the most, by posterize


def trivial_augment(images: Tensor, generator: Generator) -> Tensor:
    """One random operation on each image.

    Args:
        images: floating point, shape (N, 3, H, W), in [0, 1].
        generator: on the device of the images.
    """
    count, device = len(images), images.device
    operations = torch.randint(len(OPERATIONS), (count,), device=device, generator=generator)
    strengths = torch.randint(STRENGTHS, (count,), device=device, generator=generator)
    signs = torch.randint(2, (count,), device=device, generator=generator) * 2 - 1
    return operate(images, operations, strengths / (STRENGTHS - 1), signs)


def operate(images: Tensor, operations: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Each image after its own operation. All are computed for all images: no draw is waited for.

    Args:
        operations: shape (N,), places in `OPERATIONS`.
        strengths: shape (N,), in [0, 1].
        signs: shape (N,), -1 or 1, of operations that have a direction.
    """

    def of(name: str) -> Tensor:
        return operations == OPERATIONS.index(name)

    def where(name: str, changed: Tensor, images: Tensor) -> Tensor:
        return torch.where(of(name)[:, None, None, None], changed, images)

    strengths = strengths.to(images.dtype)
    signed = strengths * signs
    moved = _move(
        images,
        signed * LARGEST_SHEAR * of("shear-x"),
        signed * LARGEST_SHEAR * of("shear-y"),
        (signed * LARGEST_TRANSLATION * of("translate-x")).trunc(),
        (signed * LARGEST_TRANSLATION * of("translate-y")).trunc(),
        signed * LARGEST_ROTATION * of("rotate"),
    )
    red, green, blue = torch.split(images, 1, dim=1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601, as in torchvision
    base = where("color", grey, images)
    base = where("contrast", grey.mean((2, 3), keepdim=True), base)
    base = where("brightness", torch.zeros_like(grey), base)
    base = where("sharpness", _smooth(images), base)
    factor = (1 + signed * LARGEST_CHANGE)[:, None, None, None]
    blended = (base + (images - base) * factor).clamp(0, 1)
    found = where("identity", images, moved)
    for name in ("brightness", "color", "contrast", "sharpness"):
        found = where(name, blended, found)
    step = 2 ** (strengths * LOST_BITS).round()[:, None, None, None]
    levels = (images * 255).round()
    found = where("posterize", (levels / step).floor() * step / 255, found)
    threshold = (1 - strengths)[:, None, None, None]
    found = where("solarize", torch.where(images >= threshold, 1 - images, images), found)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)
    found = where("autocontrast", stretched, found)
    return where("equalize", _equalize(levels) / 255, found)


def _move(
    images: Tensor, shear_x: Tensor, shear_y: Tensor, x: Tensor, y: Tensor, angle: Tensor
) -> Tensor:
    """Shear along an edge, shift by pixels, rotate about the centre; black from outside."""
    height, width = images.shape[2:]
    cosine, sine = angle.cos(), angle.sin()
    transforms = torch.stack(
        [
            torch.stack([cosine, shear_x - sine, shear_x - 2 * x / width], dim=1),
            torch.stack([shear_y + sine, cosine, shear_y - 2 * y / height], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(transforms, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", align_corners=False)


def _smooth(images: Tensor) -> Tensor:
    """Each pixel mixed with its eight neighbours, but for the image's edge."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device, dtype=images.dtype)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(images, kernel / 13, groups=3)
    return smooth


def _equalize(levels: Tensor) -> Tensor:
    """Levels (whole numbers from 0 to 255) of which, in each channel, all are about as frequent."""
    values = levels.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    below = counts.cumsum(2) - counts
    step = below.gather(2, values.amax(2, keepdim=True)) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    equal = torch.where(step > 0, table.gather(2, values), values)
    return equal.to(levels.dtype).view_as(levels)
