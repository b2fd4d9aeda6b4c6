"""Each layer against its namesake in `torch.nn`, mostly in double precision."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.layers import BatchNorm2d, Conv2d, Linear, MaxPool2d

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
