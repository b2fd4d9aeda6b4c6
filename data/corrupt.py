"""Images made worse, to see how much of it a model bears.

Five of CIFAR-10-C's corruptions with its constants and five severities (Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019, and their
`make_cifar_c.py`), so that figures can be compared with those of others; and occlusion, which is
our own. Like theirs, the results are whole grey levels, with fractions cut off.
"""

import io
from collections.abc import Callable

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

BATCH_SIZE = 1000  # images; more would only take more memory
SEVERITIES = (1, 2, 3, 4, 5)

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation; white is 1
DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
"""Radius of a disk, and the standard deviation of the Gaussian that smooths its edge: pixels."""
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)  # added to the value (of hue, saturation, value)
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # of the distance from the mean of each channel
JPEG_QUALITY = (80, 65, 58, 50, 40)
OCCLUSION = (6, 9, 12, 15, 18)  # pixels; the side of a grey square somewhere in the image
GREY = 128.0

ROUNDING = 1e-3  # grey levels; float32 may end just below a whole one, which would be cut off


def corrupted(images: Tensor, corruption: str, severity: int, seed: int = 0) -> Tensor:
    """The images with one of `CORRUPTIONS`.

    A seed draws the same noise and the same places at every severity and on every device.

    Args:
        images: uint8, of shape (N, 3, H, W).
        severity: one of `SEVERITIES`.

    Returns:
        As `images`, on their device.
    """
    corrupt = CORRUPTIONS[corruption]
    generator = torch.Generator().manual_seed(seed)
    batches = torch.split(images, BATCH_SIZE)
    return torch.cat([corrupt(batch, severity - 1, generator) for batch in batches])


def _whole(levels: Tensor) -> Tensor:
    return (levels.clamp(0, 255) + ROUNDING).to(torch.uint8)


def _gaussian_noise(images: Tensor, index: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return _whole(images + 255 * NOISE[index] * noise)


def _defocus_blur(images: Tensor, index: int, _: torch.Generator) -> Tensor:
    kernel = _disk(*DEFOCUS[index]).to(images.device)
    size = len(kernel) // 2
    padded = functional.pad(images.float(), (size, size, size, size), mode="reflect")
    return _whole(functional.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3))


def _disk(radius: float, smoothing: float) -> Tensor:
    """A disk that sums to 1, its edge smoothed by a Gaussian of 3x3 pixels."""
    size = int(radius) + 1
    distances = torch.arange(-size, size + 1.0) ** 2
    disk = (distances[:, None] + distances <= radius**2).float()
    bell = (-(torch.arange(-1.0, 2.0) ** 2) / (2 * smoothing**2)).exp()
    bell /= bell.sum()
    smooth = functional.conv2d(disk[None, None], torch.outer(bell, bell)[None, None], padding=1)
    return smooth[0, 0] / disk.sum()


def _brightness(images: Tensor, index: int, _: torch.Generator) -> Tensor:
    levels = images.float()
    value = levels.amax(dim=1, keepdim=True)
    brighter = (value + 255 * BRIGHTNESS[index]).clamp(max=255)
    # With hue and saturation as they are, the channels keep their proportions; black becomes grey.
    return _whole(torch.where(value > 0, levels * (brighter / value.clamp(min=1)), brighter))


def _contrast(images: Tensor, index: int, _: torch.Generator) -> Tensor:
    levels = images.float()
    return _whole(torch.lerp(levels.mean(dim=(2, 3), keepdim=True), levels, CONTRAST[index]))


def _jpeg(images: Tensor, index: int, _: torch.Generator) -> Tensor:
    decoded = []
    for pixels in images.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY[index])
        decoded.append(numpy.asarray(Image.open(file)))
    return torch.from_numpy(numpy.stack(decoded)).permute(0, 3, 1, 2).to(images.device)


def _occlusion(images: Tensor, index: int, generator: torch.Generator) -> Tensor:
    size, (height, width) = OCCLUSION[index], images.shape[2:]
    room = torch.tensor([height - size + 1, width - size + 1])
    corners = (torch.rand((len(images), 2), generator=generator) * room).long()
    top, left = corners.to(images.device)[:, :, None].unbind(dim=1)
    rows, columns = (torch.arange(length, device=images.device) for length in (height, width))
    covered_rows = (rows >= top) & (rows < top + size)
    covered_columns = (columns >= left) & (columns < left + size)
    covered = covered_rows[:, None, :, None] & covered_columns[:, None, None, :]
    return images.masked_fill(covered, GREY)


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "gaussian noise": _gaussian_noise,
    "defocus blur": _defocus_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "occlusion": _occlusion,
}
