"""What a network makes of one image on the way: the output of its stem and of each stage."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.dataset import Normalisation
from model.evaluate import normalise, to_float
from model.resnet import ResNet


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """The output of one part of the network, after its last ReLU."""

    part: str
    """`stem`, or `stage 1` to `stage 4`."""
    maps: Tensor
    """Of shape (channels, H, W), 0 or more, on the CPU."""

    @property
    def dead(self) -> int:
        """How many channels are 0 everywhere, so that the image tells them nothing."""
        return int((self.maps.amax(dim=(1, 2)) == 0).sum())

    def strongest(self, count: int) -> list[int]:
        """The channels with the largest means, in their order in the network."""
        means = self.maps.mean(dim=(1, 2))
        return sorted(means.topk(min(count, len(means))).indices.tolist())


@torch.inference_mode()
def feature_maps(
    model: ResNet, image: Tensor, normalisation: Normalisation
) -> tuple[FeatureMaps, ...]:
    """The feature maps of one image, from the stem to the last stage.

    Args:
        image: uint8, of shape (3, H, W).
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        features = model.stem(normalise(to_float(image[None].to(device)), normalisation))
        found = [FeatureMaps("stem", features[0].cpu())]
        for number, stage in enumerate(model.stages, start=1):
            features = stage(features)
            found.append(FeatureMaps(f"stage {number}", features[0].cpu()))
    finally:
        model.train(training)
    return tuple(found)
