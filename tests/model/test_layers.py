"""Each layer against its namesake in `torch.nn`, mostly in double precision."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.dataset import load_dataset
from data.split import split_for_training
from model.hyperparameters import parse_hyperparameters
from model.layers import LAYERS, SCRATCH, BatchNorm2d, Conv2d, Linear, MaxPool2d
from model.resnet import ResNet
from model.train import build_model, train
from model.trial import EpochResult, TrialContext

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": 4, "stride": 3, "padding": 5},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1)},
    {"kernel_size": (1, 5), "stride": (4, 1), "padding": (2, 0)},
]
POOLINGS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 4},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)},
    {"kernel_size": (5, 4), "padding": (2, 2)},
]
SIZES = [(5, 5), (7, 6), (8, 11)]
"""Of images, that strides and kernels do and do not divide."""


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_same(ours: Tensor, theirs: Tensor, said: str = "") -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m: f"{said}: {m}")


def assert_same_layer(ours: nn.Module, theirs: nn.Module, inputs: Tensor) -> None:
    """Outputs, gradients with respect to inputs and parameters, and the state afterwards."""
    ours, theirs = ours.double(), theirs.double()
    ours.load_state_dict(theirs.state_dict())
    mine, other = (inputs.to(torch.double, copy=True).requires_grad_() for _ in range(2))
    output, expected = ours(mine), theirs(other)
    assert_same(output, expected, "output")
    weights = torch.randn_like(expected)
    output.backward(weights)
    expected.backward(weights)
    assert mine.grad is not None
    assert other.grad is not None
    assert_same(mine.grad, other.grad, "gradient of the input")
    for (name, parameter), counterpart in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        assert parameter.grad is not None
        assert counterpart.grad is not None
        assert_same(parameter.grad, counterpart.grad, f"gradient of {name}")
    for name, tensor in theirs.state_dict().items():
        assert_same(ours.state_dict()[name], tensor, name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_a_convolution_is_torch_s(settings: dict[str, Any], size: tuple[int, int]) -> None:
    ours, theirs = Conv2d(3, 4, **settings), nn.Conv2d(3, 4, **settings)
    assert_same_layer(ours, theirs, torch.randn(2, 3, *size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("settings", POOLINGS, ids=str)
def test_a_max_pool_is_torch_s(settings: dict[str, Any], size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    assert_same_layer(MaxPool2d(**settings), nn.MaxPool2d(**settings), images)


def test_the_padding_of_a_max_pool_is_never_the_greatest() -> None:
    pool = MaxPool2d(3, stride=2, padding=1)
    images = -1 - torch.rand(2, 3, 6, 6)
    assert pool(images).max() <= -1
    assert_same_layer(pool, nn.MaxPool2d(3, stride=2, padding=1), images)


@pytest.mark.parametrize("settings", POOLINGS, ids=str)
def test_of_equal_values_the_first_has_the_gradient(settings: dict[str, Any]) -> None:
    images = torch.randint(2, (2, 3, 8, 8))  # as after a ReLU, where many are 0
    assert_same_layer(MaxPool2d(**settings), nn.MaxPool2d(**settings), images)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3)])
def test_a_linear_layer_is_torch_s(leading: tuple[int, ...], bias: bool) -> None:
    ours, theirs = Linear(6, 4, bias), nn.Linear(6, 4, bias)
    assert_same_layer(ours, theirs, torch.randn(*leading, 6))


@pytest.fixture
def normalisation() -> nn.BatchNorm2d:
    """Torch's, with a state that is not the first."""
    layer = nn.BatchNorm2d(3, eps=1e-3, momentum=0.3).double()
    for tensor in layer.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return layer


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (2, 3, 1, 1), (1, 3, 2, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_normalisation_is_torch_s(
    normalisation: nn.BatchNorm2d, training: bool, shape: tuple[int, ...]
) -> None:
    ours = BatchNorm2d(3, eps=1e-3, momentum=0.3).train(training)
    assert_same_layer(ours, normalisation.train(training), 2 + 3 * torch.randn(shape))


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, 0.0])
def test_evaluation_uses_the_statistics_of_training(momentum: float) -> None:
    ours, theirs = BatchNorm2d(3, momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
    ours.double()
    theirs.double()
    for step in range(5):
        images = step + 3 * torch.randn(4, 3, 5, 5, dtype=torch.double)
        assert_same(ours(images), theirs(images))
    for name, tensor in theirs.state_dict().items():
        assert_same(ours.state_dict()[name], tensor, name)
    assert ours.num_batches_tracked == 5
    images = torch.randn(1, 3, 2, 2, dtype=torch.double)
    in_training = ours(images)
    ours.load_state_dict(theirs.state_dict())
    ours.eval()
    assert_same(ours(images), theirs.eval()(images))
    assert not torch.allclose(ours(images), in_training)
    assert ours.num_batches_tracked == 5, "evaluation tracks nothing"


def test_a_batch_of_one_value_a_channel_cannot_be_normalised_in_training() -> None:
    images = torch.randn(1, 3, 1, 1)
    for layer in (BatchNorm2d(3), nn.BatchNorm2d(3)):
        with pytest.raises(ValueError, match=r"xpected more than (one|1) value .* when training"):
            layer(images)
        layer.eval()(images)


def test_the_state_moves_with_the_module() -> None:
    layer = BatchNorm2d(3).to("meta")
    buffers = dict(layer.named_buffers())
    assert buffers.keys() == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(tensor.device.type == "meta" for tensor in buffers.values())


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(2, 3, 3, padding=1),
        Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 2)),
        MaxPool2d(3, stride=2, padding=1),
        Linear(5, 3),
        BatchNorm2d(2),
        BatchNorm2d(2).eval(),
    ],
    ids=str,
)
def test_gradients_are_the_slopes(layer: nn.Module) -> None:
    layer = deepcopy(layer).double()
    images = torch.randn(2, 2, 4, 5, dtype=torch.double, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def output(images: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        result: Tensor = torch.func.functional_call(layer, named, images)
        return result

    assert torch.autograd.gradcheck(output, (images, *layer.parameters()))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Conv2d(3, 4, 6)(torch.randn(1, 3, 5, 9)), r"a window of \(6, 6\) does not fit"),
        (lambda: MaxPool2d((1, 4))(torch.randn(1, 3, 5, 3)), r"a window of \(1, 4\) does not"),
        (lambda: MaxPool2d(3, padding=2), "padding must be at most half of kernel_size 3, but is"),
        (lambda: BatchNorm2d(3)(torch.randn(2, 1, 4, 4)), r"of shape \(N, 3, H, W\), but got \(2,"),
        (lambda: BatchNorm2d(3)(torch.randn(2, 3)), r"but got \(2, 3\)"),
    ],
)
def test_what_is_impossible_is_said(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("depth", [18, 50])
def test_the_same_seed_gives_the_same_network(depth: int) -> None:
    states = []
    for layers in LAYERS.values():
        torch.manual_seed(3)
        states.append(ResNet(10, depth, width=4, layers=layers).state_dict())
    ours, theirs = states
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def test_five_steps_of_training_give_the_same_losses_and_weights() -> None:
    theirs = ResNet(10, width=4).double()
    ours = ResNet(10, width=4, layers=SCRATCH).double()
    ours.load_state_dict(theirs.state_dict())
    images, labels = torch.randn(8, 3, 32, 32, dtype=torch.double), torch.randint(10, (8,))
    optimizers = [torch.optim.SGD(model.parameters(), 0.05, 0.9) for model in (ours, theirs)]
    for step in range(5):
        logits = [model(images) for model in (ours, theirs)]
        assert_same(logits[0], logits[1], f"logits in step {step}")
        losses = [cross_entropy(outputs, labels) for outputs in logits]
        assert_same(losses[0], losses[1], f"loss in step {step}")
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert_same(ours.eval()(images), theirs.eval()(images), "logits")
    for name, tensor in theirs.state_dict().items():
        assert_same(ours.state_dict()[name], tensor, name)


def test_a_network_from_scratch_has_none_of_torch_s_layers() -> None:
    model = build_model(parse_hyperparameters({"width": 4, "layers": "scratch"}), 10)
    theirs = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Linear)
    assert not [layer for layer in model.modules() if isinstance(layer, theirs)]


@pytest.mark.parametrize("layers", LAYERS)
def test_under_autocast_sums_have_float32_and_images_bfloat16(layers: str) -> None:
    kinds = LAYERS[layers]
    convolution, normalisation = kinds.convolution(3, 4, 3), kinds.normalisation(4)
    linear = kinds.linear(4, 2)
    images = 100 + torch.randn(16, 3, 10, 10).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        convolved = convolution(images)
        normalised = normalisation(convolved)
        logits = linear(kinds.pooling(8)(normalised).flatten(1))
    for tensor in (convolved, normalised, logits):
        assert tensor.dtype == torch.bfloat16
    for tensor in (convolved, normalised):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    # Mean and variance are those of the rounded images, but not rounded themselves.
    exact = convolved.double()
    expected = 0.1 * exact.mean((0, 2, 3))
    torch.testing.assert_close(normalisation.running_mean.double(), expected, rtol=1e-5, atol=1e-5)
    expected = 0.9 + 0.1 * exact.var((0, 2, 3))
    torch.testing.assert_close(normalisation.running_var.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def context(data_cache: Path) -> TrialContext:
    """100 training and 50 validation images, two epochs."""
    whole = split_for_training(load_dataset("cifar10-mini", data_cache), 0.1, seed=0)
    few = replace(
        whole,
        train=whole.train.select(torch.arange(0, 4400, 44)),
        validation=whole.validation.select(torch.arange(0, 500, 10)),
    )
    return TrialContext(few, torch.device("cpu"), epochs=2, seed=0, precision="fp32")


def trained(context: TrialContext, **parameters: Any) -> EpochResult:
    """The last epoch."""
    *_, last = train({"width": 4, "optimizer": "sgd", "learning_rate": 1e-4, **parameters}, context)
    return last


def test_a_trial_from_scratch_learns_what_one_with_torch_s_layers_does(
    context: TrialContext,
) -> None:
    ours, theirs = trained(context, layers="scratch"), trained(context, layers="torch")
    # Loosely: each step magnifies what float32 rounds differently (see the test in double).
    assert ours.training_loss == pytest.approx(theirs.training_loss, rel=1e-2)
    for name in ("stem.0.0.weight", "stem.0.1.running_var", "head.3.weight"):
        torch.testing.assert_close(ours.weights[name], theirs.weights[name], rtol=1e-2, atol=1e-2)


def test_a_trial_from_scratch_trains_in_bfloat16(context: TrialContext) -> None:
    last = trained(replace(context, precision="bf16"), layers="scratch")
    assert 0.5 < last.training_loss < 5
    assert all(tensor.dtype != torch.bfloat16 for tensor in last.weights.values())


def test_the_weights_of_a_trial_fit_both_kinds_of_layers(context: TrialContext) -> None:
    last = trained(context, layers="scratch")
    logits = []
    for layers in LAYERS:
        model = build_model(parse_hyperparameters({"width": 4, "layers": layers}), 10).eval()
        model.load_state_dict(dict(last.weights))
        logits.append(model(context.data.validation.images / 255))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
