"""The exponential moving average of a model's weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

STEPS_BETWEEN_UPDATES = 5
"""As in Page, "How to Train Your ResNet", 2018: as good, and a fifth of the work."""


class MovingAverage:
    """A second model whose weights are the mean of a model's weights over its recent steps.

    The weight of the state k steps ago is proportional to decay^k, and all weights add up to one
    from the first update on (Adam's correction of the bias), so that the untrained model has no
    part in it, however few steps there are.

    Batch norm's running statistics are averaged like the weights, as in Page's cifar10-fast and in
    the EfficientNet of Tan & Le, 2019. The other way, a pass over the training data (Izmailov et
    al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018), is exact, but
    would take a third of the time of the epoch that it follows.

    `torch.optim.swa_utils.AveragedModel` makes a GPU wait at each update, and counts the first
    weights that it sees as if they had been there for ever.

    Args:
        model: whose weights are averaged; not changed.
        decay: a step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.steps = 0

    def state(self) -> dict[str, Any]:
        """What `load_state` takes to go on from here."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the model's state, `steps` steps after the last update."""
        self.steps += steps
        share = (1 - self.decay**steps) / (1 - self.decay**self.steps)
        averages, latest = [], []
        for average, new in zip(
            self.model.state_dict().values(), model.state_dict().values(), strict=True
        ):
            if average.is_floating_point():
                averages.append(average)
                latest.append(new)
            else:
                average.copy_(new)  # The number of batches that batch norm has seen.
        torch._foreach_lerp_(averages, latest, share)
