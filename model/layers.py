"""Layers written from basic tensor operations, to put in the place of those of `torch.nn`.

Parameters, buffers and first draws are those of `torch.nn`: a state dict of one fits the other, and
the same seed gives the same network. A convolution is an unfolding and a matrix product; gradients
are autograd's. Between the layers images are (N, C, H, W), inside them (N, H, W, C), since a matrix
product wants the channels last.

They are slower than `torch.nn`, and training keeps every unfolded image until its backward pass:
kernel_size² times the memory of an image.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[int, int]
"""Of rows and columns."""


def windows(images: Tensor, size: Pair, stride: Pair, padding: Pair, fill: float) -> Tensor:
    """What a window sees of images of shape (N, C, H, W), at each of its places.

    Args:
        size: of the window.
        stride: from one place to the next.
        padding: of `fill`, on each side.

    Returns:
        Shape (N, H', W', size[0] * size[1], C), the window row by row.

    Raises:
        ValueError: the window is larger than the padded images.
    """
    (height, width), (down, right) = padding, stride
    padded = functional.pad(
        images.permute(0, 2, 3, 1), (0, 0, width, width, height, height), value=fill
    )
    rows = (padded.shape[1] - size[0]) // down + 1
    columns = (padded.shape[2] - size[1]) // right + 1
    if rows < 1 or columns < 1:
        raise ValueError(f"a window of {size} does not fit into images of {padded.shape[1:3]}")
    # Slices rather than Tensor.unfold, whose backward pass takes up to twice as long.
    pixels = [
        padded[:, top : top + rows * down : down, left : left + columns * right : right]
        for top in range(size[0])
        for left in range(size[1])
    ]
    return torch.stack(pixels, dim=3)


class Conv2d(nn.Module):
    """Cross-correlation, as `torch.nn.Conv2d` (without dilation and groups).

    Images of shape (N, in_channels, H, W) become (N, out_channels, H', W') with
    H' = (H + 2 * padding - kernel_size) // stride + 1; of the weight's dtype, or autocast's.

    Args:
        kernel_size, stride, padding: one number, or one for rows and one for columns. The padding
            is of zeros, on each side.

    Raises:
        ValueError: in `forward`, the kernel is larger than the padded images.
        RuntimeError: in `forward`, another number of channels or dtype.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = map(_pair, (kernel_size, stride, padding))
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        _initialise(self.weight, self.bias)

    def forward(self, images: Tensor) -> Tensor:
        patches = windows(images, self.kernel_size, self.stride, self.padding, fill=0.0)
        weight = self.weight.permute(0, 2, 3, 1)  # in the order of a patch
        output = patches.flatten(3) @ weight.flatten(1).t()
        return _plus(output, self.bias).permute(0, 3, 1, 2)


class MaxPool2d(nn.Module):
    """The greatest value in each window, as `torch.nn.MaxPool2d` (without dilation).

    Floating-point images of shape (N, C, H, W) become (N, C, H', W') with
    H' = (H + 2 * padding - kernel_size) // stride + 1. Of equal values the first has the gradient.

    Args:
        kernel_size, stride, padding: one number, or one for rows and one for columns. The stride
            is the kernel's size if not given; the padding never is the greatest.

    Raises:
        ValueError: the padding is more than half of the kernel, so that a window could lie outside
            the image; in `forward`, the kernel is larger than the padded images.
    """

    def __init__(
        self, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0
    ) -> None:
        super().__init__()
        self.kernel_size, self.padding = _pair(kernel_size), _pair(padding)
        self.stride = self.kernel_size if stride is None else _pair(stride)
        if any(2 * pad > size for pad, size in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(
                f"padding must be at most half of kernel_size {kernel_size}, but is {padding}"
            )

    def forward(self, images: Tensor) -> Tensor:
        # Not amax, which shares the gradient among equal values.
        patches = windows(images, self.kernel_size, self.stride, self.padding, fill=-math.inf)
        return patches.max(dim=3).values.permute(0, 3, 1, 2)


class Linear(nn.Module):
    """x W^T + b, as `torch.nn.Linear`.

    Features of shape (..., in_features) become (..., out_features), of the weight's dtype or
    autocast's.

    Raises:
        RuntimeError: in `forward`, another number of features or dtype.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        _initialise(self.weight, self.bias)

    def forward(self, features: Tensor) -> Tensor:
        return _plus(features @ self.weight.t(), self.bias)


class BatchNorm2d(nn.Module):
    """Each channel to zero mean and unit variance, then scaled and shifted.

    Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015, with the conventions of `torch.nn.BatchNorm2d`. Training takes mean and
    (biased) variance of the batch, and moves the running ones towards its mean and (unbiased)
    variance; evaluation takes the running ones. Images of shape (N, num_features, H, W) keep shape
    and dtype; the statistics of half-precision images are in float32.

    Args:
        num_features: channels.
        eps: added to the variance.
        momentum: the weight of a new batch in the running statistics, in [0, 1].

    Raises:
        ValueError: in `forward`, images of another shape, or in training fewer than two values a
            channel, which have no variance.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != self.num_features:
            raise ValueError(
                f"expected images of shape (N, {self.num_features}, H, W), "
                f"but got {tuple(images.shape)}"
            )
        pixels = images.permute(0, 2, 3, 1)
        # Sums over a batch need more digits than bfloat16 has.
        values = pixels.flatten(0, 2).to(torch.promote_types(images.dtype, torch.float32))
        if self.training:
            if len(values) < 2:
                raise ValueError(
                    "expected more than one value a channel when training, "
                    f"but got images of shape {tuple(images.shape)}"
                )
            mean = values.mean(dim=0)
            centred = values - mean
            variance = centred.square().mean(dim=0)
            self._track(mean.detach(), variance.detach() * (len(values) / (len(values) - 1)))
        else:
            centred, variance = values - self.running_mean, self.running_var
        output = centred * (self.weight * torch.rsqrt(variance + self.eps)) + self.bias
        return output.to(images.dtype).view(pixels.shape).permute(0, 3, 1, 2)

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        self.num_batches_tracked += 1


@dataclass(frozen=True, slots=True)
class Layers:
    """The kinds of layers that a network is made of."""

    convolution: type[nn.Module]
    normalisation: type[nn.Module]
    pooling: type[nn.Module]
    linear: type[nn.Module]


TORCH = Layers(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Linear)
SCRATCH = Layers(Conv2d, BatchNorm2d, MaxPool2d, Linear)
LAYERS: Mapping[str, Layers] = {"torch": TORCH, "scratch": SCRATCH}
"""By the names that a study file uses."""


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _plus(output: Tensor, bias: Tensor | None) -> Tensor:
    # Under autocast the output has fewer bits than the bias, and keeps them.
    return output if bias is None else output + bias.to(output.dtype)


def _initialise(weight: Tensor, bias: Tensor | None) -> None:
    """Both uniform within 1 / sqrt(inputs of an output), by the calls that `torch.nn` makes."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(bias, -bound, bound)
