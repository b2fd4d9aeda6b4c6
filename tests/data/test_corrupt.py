"""The corruptions, each beside a slow one in numpy, scipy or Pillow after CIFAR-10-C's own."""

import colorsys
import io

import numpy
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from data.corrupt import BATCH_SIZE, CORRUPTIONS, OCCLUSION, SEVERITIES, corrupted

# As in make_cifar_c.py.
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
JPEG_QUALITY = (80, 65, 58, 50, 40)

Pixels = NDArray[numpy.float64]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth ones with something black and something white in them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 8, 8, generator=generator) * 300 - 20
    return functional.interpolate(coarse, size=32, mode="bilinear").clamp(0, 255).to(torch.uint8)


def pixels(image: Tensor) -> Pixels:
    """In [0, 1], of shape (H, W, 3)."""
    return image.permute(1, 2, 0).numpy() / 255.0


def brighter(x: Pixels, severity: int) -> Pixels:
    def one(rgb: Pixels) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, rgb))
        brightest = min(value + BRIGHTNESS[severity - 1], 1)
        return colorsys.hsv_to_rgb(hue, saturation, brightest)

    result: Pixels = numpy.apply_along_axis(one, 2, x)
    return result


def flatter(x: Pixels, severity: int) -> Pixels:
    means: Pixels = x.mean(axis=(0, 1), keepdims=True)
    return (x - means) * CONTRAST[severity - 1] + means


def defocused(x: Pixels, severity: int) -> Pixels:
    radius, sigma = DEFOCUS[severity - 1]
    rows, columns = numpy.mgrid[-8:9, -8:9]
    disk = (rows**2 + columns**2 <= radius**2).astype(float)
    disk /= disk.sum()
    # With 3 taps, as there.
    disk = ndimage.gaussian_filter(disk, sigma, radius=1)
    channels = [ndimage.correlate(x[..., channel], disk, mode="mirror") for channel in range(3)]
    result: Pixels = numpy.stack(channels, axis=2)
    return result


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(
    ("name", "reference"),
    [("brightness", brighter), ("contrast", flatter), ("defocus blur", defocused)],
)
def test_what_is_not_random_is_as_in_cifar_10_c(
    images: Tensor, name: str, reference: object, severity: int
) -> None:
    assert callable(reference)
    expected = [numpy.clip(reference(pixels(image), severity), 0, 1) * 255 for image in images]
    found = corrupted(images, name, severity).permute(0, 2, 3, 1).numpy()
    # A fraction is cut off; what is whole but for rounding errors may go either way.
    apart = numpy.stack(expected) - found
    assert apart.min() > -0.01
    assert apart.max() < 1.01


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_what_pillow_makes_of_it(images: Tensor, severity: int) -> None:
    found = corrupted(images, "jpeg", severity)
    for image, worse in zip(images, found, strict=True):
        file = io.BytesIO()
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(file, "JPEG", quality=JPEG_QUALITY[severity - 1])
        expected = numpy.array(Image.open(file))
        assert numpy.array_equal(worse.permute(1, 2, 0).numpy(), expected)


def test_noise_has_the_standard_deviations_of_cifar_10_c() -> None:
    grey = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, expected in zip(SEVERITIES, NOISE, strict=True):
        apart = (corrupted(grey, "gaussian noise", severity).double() - 127.5) / 255
        assert float(apart.std()) == pytest.approx(expected, rel=0.01)
        assert float(apart.mean()) == pytest.approx(0, abs=0.001)
        assert len(torch.unique(apart[0])) > 30
    white = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    assert corrupted(white, "gaussian noise", 5).min() > 100, "it does not overflow"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_occlusion_covers_one_square_within_the_image(severity: int) -> None:
    white = torch.full((40, 3, 32, 32), 255, dtype=torch.uint8)
    found = corrupted(white, "occlusion", severity)
    size = OCCLUSION[severity - 1]
    corners = set()
    for image in found:
        covered = image != 255
        assert torch.equal(covered[0], covered[1])
        assert torch.equal(covered[0], covered[2])
        rows, columns = covered[0].nonzero().unbind(dim=1)
        assert len(rows) == size**2
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == size - 1
        assert torch.unique(image[covered]).tolist() == [128]
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) > 20


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_worse_than_the_one_before(images: Tensor, name: str) -> None:
    apart = [
        float((corrupted(images, name, severity).double() - images.double()).abs().mean())
        for severity in SEVERITIES
    ]
    assert apart[0] > 0
    assert apart == sorted(apart)
    assert len(set(apart)) == len(apart)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_seed_makes_the_same_images_and_changes_none_of_the_given(
    images: Tensor, name: str
) -> None:
    before = images.clone()
    first, again, other = (corrupted(images, name, 3, seed) for seed in (0, 0, 1))
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert torch.equal(first, again)
    assert torch.equal(images, before)
    assert torch.equal(first, other) == (name not in ("gaussian noise", "occlusion"))


def test_many_images_are_corrupted_in_batches_each_with_its_own_noise() -> None:
    grey = torch.full((BATCH_SIZE + 1, 3, 32, 32), 128, dtype=torch.uint8)
    found = corrupted(grey, "gaussian noise", 1)
    assert found.shape == grey.shape
    assert not torch.equal(found[0], found[-1])
