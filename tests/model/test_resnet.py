import pytest
import torch

from model.layers import LAYERS
from model.resnet import STEMS, Block, ResNet, initialize


def test_the_network_of_the_notebook_has_its_number_of_parameters() -> None:
    assert sum(weights.numel() for weights in ResNet(classes=10).parameters()) == 11_173_962


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize(("width", "classes"), [(4, 10), (8, 2), (12, 100)])
def test_images_become_one_logit_a_class(depth: int, width: int, classes: int) -> None:
    model = ResNet(classes, depth, width, dropout=0.5)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, classes)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("stem", STEMS)
def test_each_stem_keeps_the_size(stem: str, layers: str) -> None:
    features = ResNet(10, width=4, layers=LAYERS[layers], stem=stem).stem(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 4, 32, 32)
    assert features.min() == 0


def test_another_stem_is_refused() -> None:
    with pytest.raises(ValueError, match="stem must be one of convolution, whitening, but is 'pca"):
        ResNet(10, stem="pca")


@pytest.mark.parametrize("layers", LAYERS)
def test_no_gradient_reaches_whitening_filters(layers: str) -> None:
    model = ResNet(10, width=4, layers=LAYERS[layers], stem="whitening")
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    without = {name for name, one in model.named_parameters() if one.grad is None}
    assert without == {"stem.0.weight"}


@pytest.mark.parametrize(("depth", "expansion"), [(18, 1), (34, 1), (50, 4)])
def test_the_stages_halve_the_size_and_double_the_channels(depth: int, expansion: int) -> None:
    model = ResNet(10, depth, width=4)
    images = model.stem(torch.randn(2, 3, 32, 32))
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


def test_the_head_can_take_the_average() -> None:
    model = ResNet(10, width=4, pooling="average").eval()
    features = torch.randn(1, 32, 4, 4)
    assert torch.allclose(model.head(features), model.head[3](features.mean(dim=(2, 3))))


def test_another_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="pooling must be one of max, average, but is 'mean'"):
        ResNet(10, pooling="mean")


def test_the_logits_are_scaled() -> None:
    whole, eighth = ResNet(10, width=4).eval(), ResNet(10, width=4, logit_scale=0.125).eval()
    eighth.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(eighth(images), whole(images) / 8)


@pytest.mark.parametrize("layers", LAYERS)
def test_the_momentum_of_batch_norm_is_that_of_the_running_statistics(layers: str) -> None:
    model = ResNet(10, width=4, layers=LAYERS[layers], batch_norm_momentum=0.4)
    images = torch.randn(4, 3, 32, 32)
    model(images)
    convolution, normalisation = model.stem.get_submodule("0").children()
    features = convolution(images)
    torch.testing.assert_close(
        normalisation.get_buffer("running_mean"), 0.4 * features.mean(dim=(0, 2, 3))
    )


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("layers", LAYERS)
def test_blocks_can_begin_as_their_shortcuts(layers: str, depth: int) -> None:
    model = ResNet(10, depth, width=4, layers=LAYERS[layers])
    initialize(model, "zero-residual")
    block = model.stages.get_submodule("1.0")
    assert isinstance(block, Block)
    features = torch.rand(2, block.shortcut.get_parameter("0.weight").shape[1], 8, 8)
    assert torch.equal(block(features), block.shortcut(features).relu())


@pytest.mark.parametrize("layers", LAYERS)
def test_filters_can_begin_with_their_input(layers: str) -> None:
    torch.manual_seed(0)
    model = ResNet(10, width=4, layers=LAYERS[layers])
    stem = model.stem.get_submodule("0.0")
    fourth = stem.get_parameter("weight")[3].clone()
    initialize(model, "dirac")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(stem(images)[:, :3], images)
    assert torch.equal(stem.get_parameter("weight")[3], fourth), (
        "of more filters than inputs, the others stay"
    )


def test_the_default_initialization_is_that_of_torch() -> None:
    torch.manual_seed(0)
    model = ResNet(10, width=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initialize(model, "default")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_initialization_is_refused() -> None:
    with pytest.raises(ValueError, match=r"initialization must be one of default, .* is 'zero'"):
        initialize(ResNet(10, width=4), "zero")


def test_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth must be one of \[18, 34, 50\], but is 20"):
        ResNet(10, depth=20)


def test_dropout_is_active_in_training_alone() -> None:
    model = ResNet(10, width=4, dropout=0.5)
    features = torch.randn(1, 32, 4, 4)
    assert not torch.equal(model.head(features), model.head(features))
    model.eval()
    assert torch.equal(model.head(features), model.head(features))
