"""The ResNet for 32x32 images.

He et al., "Deep Residual Learning for Image Recognition", 2016, in the form that is usual for
CIFAR: a 3x3 stem without pooling, and strides 1-2-2-2 in the four stages. As in the notebook that
the project began with, a 4x4 max-pool precedes the classifier; an average is the usual choice.
"""

import torch
from torch import Tensor, nn

from data.dataset import Normalisation
from model.layers import TORCH, Layers
from model.whitening import FILTERS, SIZE, whitening_filters

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STRIDES = (1, 2, 2, 2)
STEMS = ("convolution", "whitening")
POOLINGS = ("max", "average")
INITIALIZATIONS = ("default", "zero-residual", "dirac")


def convolution(
    layers: Layers, inputs: int, outputs: int, size: int, stride: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size (but for its stride), and batch normalisation."""
    return nn.Sequential(
        layers.convolution(inputs, outputs, size, stride, padding=size // 2, bias=False),
        layers.normalisation(outputs),
    )


def make_stem(layers: Layers, stem: str, width: int) -> nn.Sequential:
    """Normalised images to `width` channels of the same size, 0 or more.

    Args:
        stem: `convolution` is a 3x3 convolution. `whitening` has fixed filters of 3x3 patches (see
            `whiten`) with a trained bias, and a 1x1 convolution of what they make, as in Page,
            "How to Train Your ResNet 8: Bag of Tricks", 2019: it sees as much of the image.
            Airbench (Jordan, 2024) has 2x2 patches without padding, which make 31x31 pixels of
            32x32, and a 3x3 convolution: three times the work at width 64. It trains the bias for
            three epochs alone, which only saves time; here it is always trained.

    Raises:
        ValueError: `stem` is none of `STEMS`.
    """
    if stem == "convolution":
        return nn.Sequential(convolution(layers, 3, width, 3), nn.ReLU(inplace=True))
    if stem == "whitening":
        whitening = layers.convolution(3, FILTERS, SIZE, padding=SIZE // 2)
        whitening.get_parameter("weight").requires_grad_(False)
        return nn.Sequential(
            whitening,
            nn.ReLU(inplace=True),
            convolution(layers, FILTERS, width, 1),
            nn.ReLU(inplace=True),
        )
    raise ValueError(f"stem must be one of {', '.join(STEMS)}, but is {stem!r}")


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or with `expansion` 4 a bottleneck of three."""

    def __init__(
        self, layers: Layers, inputs: int, channels: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        outputs = channels * expansion
        if expansion == 1:
            self.residual = nn.Sequential(
                convolution(layers, inputs, channels, 3, stride),
                nn.ReLU(inplace=True),
                convolution(layers, channels, outputs, 3),
            )
        else:
            self.residual = nn.Sequential(
                convolution(layers, inputs, channels, 1),
                nn.ReLU(inplace=True),
                convolution(layers, channels, channels, 3, stride),
                nn.ReLU(inplace=True),
                convolution(layers, channels, outputs, 1),
            )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = convolution(layers, inputs, outputs, 1, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.activation(self.residual(images) + self.shortcut(images))
        return output


class AveragePool(nn.Module):
    """The mean of each feature over the image."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3), keepdim=True)


class ResNet(nn.Module):
    """Normalised images of shape (N, 3, 32, 32) to logits of shape (N, classes).

    Args:
        classes: number of classes.
        depth: 18 or 34 (basic blocks) or 50 (bottlenecks).
        width: channels of the stem and the first stage; each further stage doubles them.
        dropout: probability of dropping a feature before the classifier.
        layers: what it is made of; the weights do not depend on it.
        pooling: of each feature before the classifier, one of `POOLINGS`.
        logit_scale: the logits are times this, as in Page, "How to Train Your ResNet", 2018.
        batch_norm_momentum: the weight of the latest batch in the running statistics.
        stem: one of `STEMS`; see `make_stem`.

    Raises:
        ValueError: `depth`, `pooling` or `stem` is none of these.
    """

    def __init__(
        self,
        classes: int,
        depth: int = 18,
        width: int = 64,
        dropout: float = 0.0,
        layers: Layers = TORCH,
        pooling: str = "max",
        logit_scale: float = 1.0,
        batch_norm_momentum: float = 0.1,
        stem: str = "convolution",
    ) -> None:
        super().__init__()
        if depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"depth must be one of {sorted(BLOCKS_PER_STAGE)}, but is {depth}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, but is {pooling!r}")
        self.logit_scale = logit_scale
        expansion = 4 if depth == 50 else 1
        self.stem = make_stem(layers, stem, width)
        stages = []
        inputs = width
        for stage, count in enumerate(BLOCKS_PER_STAGE[depth]):
            channels = width * 2**stage
            strides = [STRIDES[stage]] + [1] * (count - 1)
            blocks = []
            for stride in strides:
                blocks.append(Block(layers, inputs, channels, stride, expansion))
                inputs = channels * expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        pool = layers.pooling(4) if pooling == "max" else AveragePool()
        self.head = nn.Sequential(
            pool, nn.Flatten(), nn.Dropout(dropout), layers.linear(inputs, classes)
        )
        for module in self.modules():
            if isinstance(module, layers.normalisation):
                module.momentum = batch_norm_momentum  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(images)))
        return logits * self.logit_scale


@torch.no_grad()
def whiten(model: ResNet, images: Tensor, normalisation: Normalisation) -> None:
    """Give a whitening stem the filters that whiten uint8 images of shape (N, 3, H, W).

    After `initialize`. They are kept with the weights: who loads these needs no images.
    """
    model.stem.get_parameter("0.weight").copy_(whitening_filters(images, normalisation))


@torch.no_grad()
def initialize(model: ResNet, initialization: str) -> None:
    """Change the first weights from those of `torch.nn` to others.

    Args:
        initialization: `default` leaves them; `zero-residual` has each block begin as its shortcut
            (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1); `dirac` has the
            first filters of each convolution hand on their input (as airbench, Jordan, 2024).

    Raises:
        ValueError: `initialization` is none of `INITIALIZATIONS`.
    """
    if initialization == "zero-residual":
        for block in model.modules():
            if isinstance(block, Block):
                nn.init.zeros_(block.residual[-1].get_parameter("1.weight"))
    elif initialization == "dirac":
        for weight in model.parameters():
            if weight.ndim == 4:
                nn.init.dirac_(weight[: weight.shape[1]])
    elif initialization != "default":
        raise ValueError(
            f"initialization must be one of {', '.join(INITIALIZATIONS)}, but is {initialization!r}"
        )
