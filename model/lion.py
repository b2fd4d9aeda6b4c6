"""Lion: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn, optim

BETA_1 = 0.9  # of the momentum in the step's direction
BETA_2 = 0.99  # of the momentum itself


class Lion(optim.Optimizer):
    """Steps of one size in every coordinate: the sign of the momentum mixed with the gradient.

    Weight decay is decoupled, and so times the rate, as in AdamW. The paper advises a rate 3 to 10
    times smaller than AdamW's, and a weight decay as much larger.

    Args:
        parameters: or groups of them.
        lr: learning rate.
        weight_decay: of groups that do not give one.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            if not parameters:
                continue
            gradients = [one.grad for one in parameters]
            for one in parameters:
                if not self.state[one]:
                    self.state[one]["momentum"] = torch.zeros_like(one)
            momenta = [self.state[one]["momentum"] for one in parameters]
            steps = torch._foreach_lerp(momenta, gradients, 1 - BETA_1)
            torch._foreach_sign_(steps)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, steps, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - BETA_2)
