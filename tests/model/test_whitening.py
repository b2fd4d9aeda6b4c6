from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from data.dataset import CIFAR10_NORMALISATION, load_dataset
from model.evaluate import normalise
from model.whitening import EPSILON, FILTERS, whitening_filters


@pytest.fixture(scope="module")
def images(data_cache: Path) -> Tensor:
    """100 of the training images that ship, of all classes."""
    return load_dataset("cifar10-mini", data_cache).train.images[::50]


def test_what_the_filters_make_of_images_is_white(images: Tensor) -> None:
    filters = whitening_filters(images, CIFAR10_NORMALISATION)
    positive, negative = filters.double().chunk(2)
    assert filters.shape == (FILTERS, 3, 3, 3)
    assert torch.equal(negative, -positive)
    found = functional.conv2d(normalise(images.double() / 255, CIFAR10_NORMALISATION), positive)
    outputs = found.transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    variances = covariance.diagonal()
    # As a filter's norm is 1 / sqrt(λ + ε), its output's variance is λ / (λ + ε).
    expected = 1 - EPSILON * positive.flatten(1).square().sum(dim=1)
    torch.testing.assert_close(variances, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(covariance, variances.diag(), rtol=0, atol=1e-4)
    assert (variances.diff() <= 0).all(), "where images vary most is first"
    assert variances[:8].min() > 0.9, "nearly the identity, but for what is noise"


def test_the_sign_of_each_filter_is_decided(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two eigenvectors LAPACK gives is not."""
    expected = whitening_filters(images, CIFAR10_NORMALISATION)
    eigh = torch.linalg.eigh

    def other(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(matrix)
        return values, -vectors

    monkeypatch.setattr(torch.linalg, "eigh", other)
    assert torch.equal(whitening_filters(images, CIFAR10_NORMALISATION), expected)


def test_of_many_images_some_of_all_are_used(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may lie class by class. And in parts, the last of which is smaller."""
    expected = whitening_filters(images[::3], CIFAR10_NORMALISATION)
    monkeypatch.setattr("model.whitening.MOST_IMAGES", 40)
    monkeypatch.setattr("model.whitening.IMAGES_AT_ONCE", 20)
    found = whitening_filters(images, CIFAR10_NORMALISATION)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_images_of_one_colour_have_filters_too() -> None:
    images = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    assert whitening_filters(images, CIFAR10_NORMALISATION).isfinite().all()
