from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from data.augment import (
    CROP_SHIFT,
    CUTOUT_SIZE,
    PARTS,
    SMALL_CROP_SHIFT,
    augment,
    crop,
    cutout,
    draw_first_flips,
    flip,
    is_augmentation,
    jitter,
    mirrored_in,
    resized_crop,
    small_crop,
)

AUGMENTATIONS = ("none", "flip+crop", "flip+crop+cutout", "flip+crop2+trivial", *PARTS)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(64, 3, 32, 32, generator=seeded(1))


HALF = torch.arange(64) % 2 == 0
VARIANTS = [(name, color_jitter) for name in AUGMENTATIONS for color_jitter in (False, True)]


@pytest.mark.parametrize(("name", "color_jitter"), VARIANTS)
def test_shape_type_and_range_are_kept(images: Tensor, name: str, color_jitter: bool) -> None:
    before = images.clone()
    augmented = augment(images, name, color_jitter, seeded(), HALF)
    assert augmented.shape == images.shape
    assert augmented.dtype == images.dtype
    assert 0 <= augmented.min() <= augmented.max() <= 1
    assert torch.equal(images, before), "the images that were given are left alone"


@pytest.mark.parametrize(("name", "color_jitter"), VARIANTS)
def test_the_generator_decides(images: Tensor, name: str, color_jitter: bool) -> None:
    first, again, other = (augment(images, name, color_jitter, seeded(s), HALF) for s in (0, 0, 1))
    assert torch.equal(first, again)
    if color_jitter or name not in ("none", "alternating-flip"):
        assert not torch.equal(first, other)


@pytest.mark.parametrize(("name", "color_jitter"), VARIANTS)
def test_each_image_is_drawn_for_by_itself(name: str, color_jitter: bool) -> None:
    alike = torch.rand(1, 3, 32, 32, generator=seeded(1)).expand(64, -1, -1, -1)
    augmented = augment(alike, name, color_jitter, seeded(), HALF)
    different = {image.numpy().tobytes() for image in augmented}
    expected = {"none": 1, "flip": 2, "alternating-flip": 2, "crop2": 15}.get(name, 25)
    assert len(different) >= (30 if color_jitter else expected)


def test_none_changes_nothing(images: Tensor) -> None:
    assert torch.equal(augment(images, "none", False, seeded(), HALF), images)


def test_flip_mirrors_about_half_of_the_images(images: Tensor) -> None:
    flipped = flip(images, seeded())
    same = (flipped == images).all(dim=(1, 2, 3))
    mirrored = (flipped == images.flip(3)).all(dim=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 16 < int(mirrored.sum()) < 48


def test_alternating_flip_mirrors_half_at_first_and_then_each_in_every_second_epoch(
    images: Tensor,
) -> None:
    first_flips = draw_first_flips(64, 0, torch.device("cpu"))
    assert 16 < int(first_flips.sum()) < 48
    one, two, three = (
        augment(images, "alternating-flip", False, seeded(), mirrored_in(epoch, first_flips))
        for epoch in (1, 2, 3)
    )
    for image, flipped, first, second in zip(images, first_flips, one, two, strict=True):
        assert torch.equal(first, image.flip(2) if flipped else image)
        assert torch.equal(second, image if flipped else image.flip(2))
    assert torch.equal(one, three)


def test_the_seed_decides_which_images_alternating_flip_mirrors_first() -> None:
    first, again, other = (draw_first_flips(64, seed, torch.device("cpu")) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("part", "shift"), [(crop, CROP_SHIFT), (small_crop, SMALL_CROP_SHIFT)])
def test_crop_takes_a_window_of_the_reflected_image(
    images: Tensor, part: Callable[[Tensor, Generator], Tensor], shift: int
) -> None:
    padded = functional.pad(images, [shift] * 4, mode="reflect")
    shifts = set()
    for image, wide in zip(part(images, seeded()), padded, strict=True):
        found = [
            (row, column)
            for row in range(2 * shift + 1)
            for column in range(2 * shift + 1)
            if torch.equal(wide[:, row : row + 32, column : column + 32], image)
        ]
        assert len(found) == 1
        shifts.update(found)
    assert {row for row, _ in shifts} == set(range(2 * shift + 1))
    assert {column for _, column in shifts} == set(range(2 * shift + 1))


def test_cutout_greys_one_square(images: Tensor) -> None:
    cut = cutout(images, seeded())
    grey = images.mean(dim=(0, 2, 3))
    areas = []
    for before, after in zip(images, cut, strict=True):
        changed = (before != after).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        height = int(rows.max() - rows.min()) + 1
        width = int(columns.max() - columns.min()) + 1
        assert int(changed.sum()) == height * width, "a full rectangle"
        assert max(height, width) <= CUTOUT_SIZE
        assert torch.allclose(after[:, changed], grey[:, None])
        areas.append(height * width)
    assert max(areas) == CUTOUT_SIZE**2


def test_resized_crop_scales_a_part_up() -> None:
    """On a ramp, the differences between neighbours shrink as the part that is taken does."""
    ramp = torch.linspace(0, 1, 32).expand(200, 3, 32, 32)
    slope = (resized_crop(ramp, seeded()).diff(dim=3)).mean(dim=(1, 2, 3)) * 31
    assert (slope > 0).all()
    assert slope.min() < 0.45
    assert 0.85 < slope.max() <= 1.001


def test_resized_crop_takes_all_parts_of_the_image() -> None:
    ramp = torch.linspace(0, 1, 32).expand(200, 3, 32, 32)
    cropped = resized_crop(ramp, seeded())
    assert cropped[:, :, :, 0].min() < 0.05
    assert cropped[:, :, :, -1].max() > 0.95
    assert 0.45 < cropped.mean() < 0.55


def test_jitter_keeps_grey_images_grey() -> None:
    grey = torch.rand(16, 1, 32, 32, generator=seeded(1)).expand(-1, 3, -1, -1)
    jittered = jitter(grey, seeded())
    assert torch.allclose(jittered[:, 0], jittered[:, 1], atol=1e-5)
    assert torch.allclose(jittered[:, 1], jittered[:, 2], atol=1e-5)
    assert not torch.allclose(jittered, grey, atol=0.01)


def test_jitter_changes_the_brightness_of_each_image_a_little() -> None:
    flat = torch.full((500, 3, 4, 4), 0.5)
    levels = jitter(flat, seeded()).mean(dim=(1, 2, 3))
    assert 0.39 < levels.min() < 0.42
    assert 0.58 < levels.max() < 0.61


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_batch_of_one_is_augmented_too(name: str) -> None:
    augmented = augment(torch.rand(1, 3, 32, 32), name, True, seeded(), HALF[:1])
    assert augmented.shape == (1, 3, 32, 32)


def test_an_augmentation_is_made_of_known_parts_each_once() -> None:
    assert all(map(is_augmentation, AUGMENTATIONS))
    for other in ("", "flip+", "crop+none", "flip+flip", "flip+mixup", "flip,crop", True, 2):
        assert not is_augmentation(other), other


def test_an_unknown_augmentation_is_an_error() -> None:
    with pytest.raises(KeyError, match="mixup"):
        augment(torch.rand(1, 3, 32, 32), "flip+mixup", False, seeded(), HALF[:1])
