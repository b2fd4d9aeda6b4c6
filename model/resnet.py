"""The ResNet for 32x32 images.

He et al., "Deep Residual Learning for Image Recognition", 2016, in the form that is usual for
CIFAR: a 3x3 stem without pooling, and strides 1-2-2-2 in the four stages. As in the notebook that
the project began with, a 4x4 max-pool (not an average) precedes the classifier.
"""

from torch import Tensor, nn

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STRIDES = (1, 2, 2, 2)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (but for its stride), and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or with `expansion` 4 a bottleneck of three."""

    def __init__(self, inputs: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        outputs = channels * expansion
        if expansion == 1:
            self.residual = nn.Sequential(
                convolution(inputs, channels, 3, stride),
                nn.ReLU(inplace=True),
                convolution(channels, outputs, 3),
            )
        else:
            self.residual = nn.Sequential(
                convolution(inputs, channels, 1),
                nn.ReLU(inplace=True),
                convolution(channels, channels, 3, stride),
                nn.ReLU(inplace=True),
                convolution(channels, outputs, 1),
            )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = convolution(inputs, outputs, 1, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.activation(self.residual(images) + self.shortcut(images))
        return output


class ResNet(nn.Module):
    """Normalised images of shape (N, 3, 32, 32) to logits of shape (N, classes).

    Args:
        classes: number of classes.
        depth: 18 or 34 (basic blocks) or 50 (bottlenecks).
        width: channels of the stem and the first stage; each further stage doubles them.
        dropout: probability of dropping a feature before the classifier.

    Raises:
        ValueError: `depth` is none of these.
    """

    def __init__(
        self, classes: int, depth: int = 18, width: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"depth must be one of {sorted(BLOCKS_PER_STAGE)}, but is {depth}")
        expansion = 4 if depth == 50 else 1
        self.stem = nn.Sequential(convolution(3, width, 3), nn.ReLU(inplace=True))
        stages = []
        inputs = width
        for stage, blocks in enumerate(BLOCKS_PER_STAGE[depth]):
            channels = width * 2**stage
            strides = [STRIDES[stage]] + [1] * (blocks - 1)
            layers = []
            for stride in strides:
                layers.append(Block(inputs, channels, stride, expansion))
                inputs = channels * expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(images)))
        return logits
