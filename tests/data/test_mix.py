import pytest
import torch
from torch import Generator, Tensor

from data.mix import mix


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    """Each of one level, so that a pixel tells where it is from."""
    return torch.linspace(0, 1, 64)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_an_image_has_its_share_in_its_mixture(images: Tensor, mixing: str) -> None:
    """The mean level of a mixture tells how much of it is of which image."""
    mixed = mix(images, mixing, seeded())
    assert mixed.partners is not None
    assert mixed.shares is not None
    own, other = images[:, 0, 0, 0], images[mixed.partners, 0, 0, 0]
    expected = mixed.shares * own + (1 - mixed.shares) * other
    torch.testing.assert_close(mixed.images.mean(dim=(1, 2, 3)), expected)
    assert sorted(mixed.partners.tolist()) == list(range(64))
    assert 0 <= mixed.shares.min() < 0.4
    assert 0.9 < mixed.shares.max() <= 1
    assert len(set(mixed.shares.tolist())) > 30, "each image is drawn for by itself"


def test_cutmix_pastes_one_rectangle_of_the_area_that_the_labels_say(images: Tensor) -> None:
    mixed = mix(images, "cutmix", seeded())
    assert mixed.partners is not None
    assert mixed.shares is not None
    for place, (image, partner) in enumerate(zip(mixed.images, mixed.partners, strict=True)):
        if partner == place:
            continue
        pasted = (image == images[partner]).all(dim=0)
        assert torch.equal(image[:, ~pasted], images[place][:, ~pasted])
        rows, columns = pasted.any(dim=1), pasted.any(dim=0)
        assert torch.equal(pasted, rows[:, None] & columns)
        assert int(pasted.sum()) == round((1 - float(mixed.shares[place])) * 32 * 32)


def test_the_rectangles_have_the_area_that_was_drawn_but_for_the_edge(images: Tensor) -> None:
    """The mean of a uniform share is 1/2; what lies over the edge is not lost by the image."""
    many = images.repeat(20, 1, 1, 1)
    shares = mix(many, "cutmix", seeded()).shares
    assert shares is not None
    assert 0.6 < shares.mean() < 0.75


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_the_generator_decides_and_the_images_are_left_alone(images: Tensor, mixing: str) -> None:
    before = images.clone()
    first, again, other = (mix(images, mixing, seeded(seed)).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_none_draws_nothing(images: Tensor) -> None:
    generator = seeded()
    mixed = mix(images, "none", generator)
    assert mixed.images is images
    assert mixed.partners is mixed.shares is None
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_a_batch_of_one_is_mixed_with_itself(mixing: str) -> None:
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(mix(image, mixing, seeded()).images, image)


def test_another_mixing_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="mixing must be one of none, mixup, cutmix, but is 'mix'"):
        mix(images, "mix", seeded())
