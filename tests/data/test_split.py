from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.dataset import CIFAR10_NORMALISATION, load_dataset
from data.errors import UserError
from data.split import (
    normalisation_of,
    split_for_training,
    stratified_split,
    whole_for_training,
)

LABELS = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)


def test_each_class_is_divided_in_the_same_proportion() -> None:
    kept, held_out = stratified_split(LABELS, 0.1, seed=0)
    assert torch.bincount(LABELS[held_out]).tolist() == [5, 2, 1]
    assert torch.bincount(LABELS[kept]).tolist() == [45, 18, 2]


def test_the_parts_are_disjoint_and_complete() -> None:
    kept, held_out = stratified_split(LABELS, 0.3, seed=0)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(len(LABELS)))


def test_the_seed_decides_the_parts() -> None:
    first, again, other = (stratified_split(LABELS, 0.3, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_no_class_loses_all_its_images_to_one_part(fraction: float) -> None:
    for part in stratified_split(LABELS, fraction, seed=0):
        assert torch.bincount(LABELS[part], minlength=3).min() >= 1


def test_a_class_with_one_image_is_refused() -> None:
    with pytest.raises(UserError, match="class number 1 has one image"):
        stratified_split(torch.tensor([0, 0, 1]), 0.5, seed=0)


def test_the_validation_images_are_not_trained_on(data_cache: Path) -> None:
    dataset = load_dataset("cifar10-mini", data_cache)
    data = split_for_training(dataset, 0.1, seed=0)
    assert (len(data.train), len(data.validation)) == (4500, 500)
    train = {image.numpy().tobytes() for image in data.train.images}
    validation = {image.numpy().tobytes() for image in data.validation.images}
    twins = {image.numpy().tobytes() for image in dataset.train.images}
    assert len(train & validation) <= 5000 - len(twins), "but for images that are there twice"
    assert data.normalisation == CIFAR10_NORMALISATION


def test_the_whole_is_all_training_images_and_none_to_validate_with(data_cache: Path) -> None:
    dataset = load_dataset("cifar10-mini", data_cache)
    data = whole_for_training(dataset)
    assert torch.equal(data.train.images, dataset.train.images)
    assert len(data.validation) == 0
    assert data.normalisation == CIFAR10_NORMALISATION
    own = whole_for_training(replace(dataset, normalisation=None))
    assert own.normalisation == normalisation_of(dataset.train.images)


def test_normalisation_is_the_mean_and_deviation_of_each_channel() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    images[:, 1] //= 2
    scaled = images.double() / 255
    found = normalisation_of(images)
    assert found.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert found.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


def test_images_of_one_color_do_not_divide_by_zero() -> None:
    found = normalisation_of(torch.full((5, 3, 8, 8), 7, dtype=torch.uint8))
    assert found.mean == pytest.approx([7 / 255] * 3)
    assert found.std == pytest.approx([1 / 255] * 3)
