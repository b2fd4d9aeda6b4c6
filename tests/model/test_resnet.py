import pytest
import torch

from model.resnet import ResNet


def test_the_network_of_the_notebook_has_its_number_of_parameters() -> None:
    assert sum(weights.numel() for weights in ResNet(classes=10).parameters()) == 11_173_962


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize(("width", "classes"), [(4, 10), (8, 2), (12, 100)])
def test_images_become_one_logit_a_class(depth: int, width: int, classes: int) -> None:
    model = ResNet(classes, depth, width, dropout=0.5)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, classes)


@pytest.mark.parametrize(("depth", "expansion"), [(18, 1), (34, 1), (50, 4)])
def test_the_stages_halve_the_size_and_double_the_channels(depth: int, expansion: int) -> None:
    model = ResNet(10, depth, width=4)
    images = model.stem(torch.randn(2, 3, 32, 32))
    assert images.shape == (2, 4, 32, 32)
    for channels, size, stage in zip((4, 8, 16, 32), (32, 16, 8, 4), model.stages, strict=True):
        images = stage(images)
        assert images.shape == (2, channels * expansion, size, size)


@pytest.mark.parametrize(("depth", "blocks"), [(18, [2, 2, 2, 2]), (34, [3, 4, 6, 3])])
def test_the_depth_decides_the_number_of_blocks(depth: int, blocks: list[int]) -> None:
    stages = ResNet(10, depth, width=4).stages
    assert [len(list(stage.children())) for stage in stages] == blocks


def test_the_head_takes_the_greatest_of_each_feature() -> None:
    model = ResNet(10, width=4).eval()
    features = torch.randn(1, 32, 4, 4)
    expected = model.head[3](features.amax(dim=(2, 3)))
    assert torch.allclose(model.head(features), expected)


def test_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth must be one of \[18, 34, 50\], but is 20"):
        ResNet(10, depth=20)


def test_dropout_is_active_in_training_alone() -> None:
    model = ResNet(10, width=4, dropout=0.5)
    features = torch.randn(1, 32, 4, 4)
    assert not torch.equal(model.head(features), model.head(features))
    model.eval()
    assert torch.equal(model.head(features), model.head(features))
