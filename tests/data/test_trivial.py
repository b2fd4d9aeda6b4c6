import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from data.trivial import OPERATIONS, operate, operate_apart, operate_on_all, trivial_augment

TORCHVISION = {
    **{"identity": "Identity", "shear-x": "ShearX", "shear-y": "ShearY", "rotate": "Rotate"},
    **{"translate-x": "TranslateX", "translate-y": "TranslateY", "brightness": "Brightness"},
    **{"color": "Color", "contrast": "Contrast", "sharpness": "Sharpness"},
    **{"posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast"},
    "equalize": "Equalize",
}


@pytest.fixture
def image() -> Tensor:
    """Smooth, with edges, in 0 to 255."""
    coarse = torch.rand(1, 3, 8, 8, generator=Generator().manual_seed(0)) * 200 + 20
    return functional.interpolate(coarse, size=32, mode="bilinear").to(torch.uint8)


# 15 of 30 is left out: torchvision shifts by int(15.999999) pixels there.
@pytest.mark.parametrize("strength", [0, 1, 7, 14, 22, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_torchvision(image: Tensor, name: str, strength: int) -> None:
    theirs = v2.TrivialAugmentWide()
    strengths, is_signed = theirs._AUGMENTATION_SPACE[TORCHVISION[name]]
    of_theirs = strengths(31, 32, 32)
    for sign in (1, -1) if is_signed else (1,):
        expected = theirs._apply_image_or_video_transform(
            image,
            TORCHVISION[name],
            0.0 if of_theirs is None else float(of_theirs[strength]) * sign,
            interpolation=InterpolationMode.NEAREST,
            fill=theirs._fill,
        )
        found = operate(
            image / 255,
            torch.tensor([OPERATIONS.index(name)]),
            torch.tensor([strength / 30]),
            torch.tensor([sign]),
        )
        # Torchvision rounds down to whole levels, some on the way too; one in a hundred pixels at a
        # threshold may fall to the other side.
        wrong = ((found * 255 - expected).abs() > 2).float().mean()
        assert wrong < 0.01


def test_each_operation_is_drawn_about_as_often() -> None:
    images = torch.rand(1, 3, 32, 32, generator=Generator().manual_seed(1)).expand(1400, -1, -1, -1)
    found = trivial_augment(images, Generator().manual_seed(0))
    unchanged = (found - images).abs().amax(dim=(1, 2, 3)) < 0.01
    # Identity, and of other operations the weakest of 31 strengths.
    assert 0.07 < unchanged.float().mean() < 0.20
    assert len({one.numpy().tobytes() for one in found}) > 300


def test_a_gpu_s_way_gives_the_same() -> None:
    generator = Generator().manual_seed(0)
    images = torch.rand(280, 3, 32, 32, generator=generator)
    operations = torch.arange(280) % len(OPERATIONS)
    strengths = torch.rand(280, generator=generator)
    signed = strengths * (torch.randint(2, (280,), generator=generator) * 2 - 1)
    given = (images, operations, strengths, signed)
    wrong = (operate_apart(*given) - operate_on_all(*given)).abs() > 1e-6
    # A pixel may be taken from its neighbour where rounding decides.
    assert wrong.float().mean() < 0.001
