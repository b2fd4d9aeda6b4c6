import pytest
import torch
from torch import Tensor, nn

from data.dataset import CIFAR10_NORMALISATION
from model.evaluate import logits, normalise
from model.features import FeatureMaps, feature_maps
from model.resnet import ResNet

IMAGE = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize(("depth", "expansion"), [(18, 1), (50, 4)])
def test_they_have_the_shapes_of_the_stem_and_the_four_stages(depth: int, expansion: int) -> None:
    found = feature_maps(ResNet(3, depth=depth, width=4), IMAGE, CIFAR10_NORMALISATION)
    assert [(part.part, tuple(part.maps.shape)) for part in found] == [
        ("stem", (4, 32, 32)),
        ("stage 1", (4 * expansion, 32, 32)),
        ("stage 2", (8 * expansion, 16, 16)),
        ("stage 3", (16 * expansion, 8, 8)),
        ("stage 4", (32 * expansion, 4, 4)),
    ]
    assert all(part.maps.min() >= 0 for part in found)


def test_they_are_what_passes_through_the_network() -> None:
    torch.manual_seed(0)
    model = ResNet(3, width=4)
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        seen.append(output[0].clone())

    hooks = [module.register_forward_hook(keep) for module in (model.stem, *model.stages)]
    expected = model.eval()(normalise(IMAGE[None].float() / 255, CIFAR10_NORMALISATION))
    for hook in hooks:
        hook.remove()
    model.train()
    found = feature_maps(model, IMAGE, CIFAR10_NORMALISATION)
    assert model.training, "as it was before"
    for part, output in zip(found, seen, strict=True):
        torch.testing.assert_close(part.maps, output)
    last = model.head.eval()(found[-1].maps[None])
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(last, logits(model, IMAGE[None], CIFAR10_NORMALISATION))


def test_the_strongest_channels_and_the_dead_ones_are_told() -> None:
    maps = torch.zeros(5, 2, 2)
    maps[1], maps[3] = 1.0, 3.0
    maps[4, 0, 0] = 5.0
    part = FeatureMaps("stem", maps)
    assert part.dead == 2
    assert part.strongest(2) == [3, 4]
    assert part.strongest(9) == [0, 1, 2, 3, 4]
