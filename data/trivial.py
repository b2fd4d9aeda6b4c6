"""TrivialAugment (wide) of a whole batch at once: one random operation of random strength an image.

Müller & Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021, with
operations, strengths and nearest-neighbour sampling as in torchvision's `TrivialAugmentWide` (whose
middle translation is of 15 pixels, where it should be 16).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional

STRENGTHS = 31
LARGEST_SHEAR = 0.99
LARGEST_TRANSLATION = 32  # pixels
LARGEST_ROTATION = math.radians(135)
LARGEST_CHANGE = 0.99  # of brightness, color, contrast and sharpness
LOST_BITS = 6  # of 8, at the most, by posterize


Numbers = tuple[Tensor | float, ...]
"""Of an affine map, row by row: where each pixel of an image is taken from."""


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
    """Each image after its own operation.

    Args:
        operations: shape (N,), places in `OPERATIONS`.
        strengths: shape (N,), in [0, 1].
        signs: shape (N,), -1 or 1, of operations that have a direction.
    """
    strengths = strengths.to(images.dtype)
    apart = images.device.type == "cpu"
    return (operate_apart if apart else operate_on_all)(
        images, operations, strengths, strengths * signs
    )


def operate_apart(images: Tensor, operations: Tensor, strengths: Tensor, signed: Tensor) -> Tensor:
    """Each operation on its own images, which the host has to know."""
    found = images.clone()
    for place, name in enumerate(OPERATIONS):
        chosen = (operations == place).nonzero().flatten()
        if not len(chosen):
            continue
        its = images[chosen]
        if name in MOVES:
            found[chosen] = _move(its, _map(its, MOVES[name](its, signed[chosen])))
        elif name in BASES:
            found[chosen] = _blend(BASES[name](its), its, signed[chosen])
        elif name in OTHERS:
            found[chosen] = OTHERS[name](its, strengths[chosen])
    return found


def operate_on_all(images: Tensor, operations: Tensor, strengths: Tensor, signed: Tensor) -> Tensor:
    """Each operation on all images, so that nobody waits for a GPU's draws."""

    def where(name: str, changed: Tensor, otherwise: Tensor) -> Tensor:
        chosen = (operations == OPERATIONS.index(name)).view(-1, *[1] * (changed.ndim - 1))
        return torch.where(chosen, changed, otherwise)

    moved = _map(images, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    for name, move in MOVES.items():
        moved = where(name, _map(images, move(images, signed)), moved)
    found = where("identity", images, _move(images, moved))
    base = images
    for name, base_of in BASES.items():
        base = where(name, base_of(images), base)
    blended = _blend(base, images, signed)
    for name in BASES:
        found = where(name, blended, found)
    for name, other in OTHERS.items():
        found = where(name, other(images, strengths), found)
    return found


def _shear_x(images: Tensor, signed: Tensor) -> Numbers:
    """Along the upper edge."""
    shear = signed * LARGEST_SHEAR
    return 1.0, shear, shear, 0.0, 1.0, 0.0


def _shear_y(images: Tensor, signed: Tensor) -> Numbers:
    """Along the left edge."""
    shear = signed * LARGEST_SHEAR
    return 1.0, 0.0, 0.0, shear, 1.0, shear


def _translate_x(images: Tensor, signed: Tensor) -> Numbers:
    shift = (signed * LARGEST_TRANSLATION).trunc()
    return 1.0, 0.0, -2 * shift / images.shape[3], 0.0, 1.0, 0.0


def _translate_y(images: Tensor, signed: Tensor) -> Numbers:
    shift = (signed * LARGEST_TRANSLATION).trunc()
    return 1.0, 0.0, 0.0, 0.0, 1.0, -2 * shift / images.shape[2]


def _rotate(images: Tensor, signed: Tensor) -> Numbers:
    """About the centre."""
    angle = signed * LARGEST_ROTATION
    cosine, sine = angle.cos(), angle.sin()
    return cosine, -sine, 0.0, sine, cosine, 0.0


def _map(images: Tensor, numbers: Numbers) -> Tensor:
    """As a matrix for each image, shape (N, 2, 3)."""
    matrices = images.new_empty(len(images), 6)
    for place, number in enumerate(numbers):
        matrices[:, place] = number
    return matrices.view(-1, 2, 3)


def _move(images: Tensor, matrices: Tensor) -> Tensor:
    """Black from outside."""
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", align_corners=False)


def _blend(base: Tensor, images: Tensor, signed: Tensor) -> Tensor:
    """Towards what is without a quality, or as far away from it."""
    factor = (1 + signed * LARGEST_CHANGE)[:, None, None, None]
    return (base + (images - base) * factor).clamp(0, 1)


def _black(images: Tensor) -> Tensor:
    return torch.zeros_like(images)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = torch.split(images, 1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601, as in torchvision


def _mean_grey(images: Tensor) -> Tensor:
    return _grey(images).mean((2, 3), keepdim=True)


def _posterize(images: Tensor, strengths: Tensor) -> Tensor:
    step = 2 ** (strengths * LOST_BITS).round()[:, None, None, None]
    return (_levels(images) / step).floor() * step / 255


def _solarize(images: Tensor, strengths: Tensor) -> Tensor:
    threshold = (1 - strengths)[:, None, None, None]
    return torch.where(images >= threshold, 1 - images, images)


def _autocontrast(images: Tensor, strengths: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _equalize(images: Tensor, strengths: Tensor) -> Tensor:
    """In each channel, all levels are about as frequent."""
    values = _levels(images).flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    below = counts.cumsum(2) - counts
    step = below.gather(2, values.amax(2, keepdim=True)) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    equal = torch.where(step > 0, table.gather(2, values), values)
    return equal.to(images.dtype).view_as(images) / 255


def _levels(images: Tensor) -> Tensor:
    """Whole numbers from 0 to 255."""
    return (images * 255).round()


def _smooth(images: Tensor) -> Tensor:
    """Each pixel mixed with its eight neighbours, but for the image's edge."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device, dtype=images.dtype)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(images, kernel / 13, groups=3)
    return smooth


MOVES: Mapping[str, Callable[[Tensor, Tensor], Numbers]] = {
    "shear-x": _shear_x,
    "shear-y": _shear_y,
    "translate-x": _translate_x,
    "translate-y": _translate_y,
    "rotate": _rotate,
}
"""Functions of images, and of strengths with a random sign."""
BASES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "brightness": _black,
    "color": _grey,
    "contrast": _mean_grey,
    "sharpness": _smooth,
}
"""What images are without the quality that is changed."""
OTHERS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""Functions of images and strengths."""
OPERATIONS = ("identity", *MOVES, *BASES, *OTHERS)
