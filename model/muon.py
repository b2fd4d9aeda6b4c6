"""Muon for a network of convolutions.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, in the form of
airbench94_muon (Jordan, 2024), which holds the record on CIFAR-10. `torch.optim.Muon` takes
matrices alone, and one at a time.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

ITERATIONS = 3  # airbench's; 5 in language models
COEFFICIENTS = (3.4445, -4.775, 2.0315)  # for the steepest slope at 0, not for an exact limit
EPSILON = 1e-7

Tensors = list[Tensor] | tuple[Tensor, ...]


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices of the same singular vectors, but with singular values near 1.

    By Newton-Schulz iterations. Most values end in 0.7 to 1.2; those that are below a fiftieth of
    their matrix's Frobenius norm stay smaller.

    Args:
        matrices: shape (N, rows, columns). Under autocast they are multiplied in its precision.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # So that the products are of the smaller size.
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPSILON)
    for _ in range(ITERATIONS):
        squares = torch.bmm(x, x.mT)
        polynomials = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomials, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(optim.Optimizer):
    """Nesterov momentum, which for filters (parameters of four dimensions) is orthogonalised.

    A convolution's filters are a matrix with one row for each output channel. Before each step they
    are scaled to a mean norm of 1 a row: batch norm makes the network blind to their scale, and the
    rate is then the relative size of the step. This takes the place of their weight decay. All
    other parameters are trained by SGD with the same rate and momentum, which for batch norm and
    classifier is a usual one: 0.05 to 0.6 suits both.

    Args:
        parameters: or groups of them.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: of groups that do not give one; times the rate, as in SGD.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            given = [one for one in group["params"] if one.grad is not None]
            filters = [one for one in given if one.ndim == 4]
            others = [one for one in given if one.ndim != 4]
            if others:
                gradients = [one.grad for one in others]
                decayed = torch._foreach_add(gradients, others, alpha=group["weight_decay"])
                steps = self._with_momentum(others, decayed, group["momentum"])
                torch._foreach_add_(others, steps, alpha=-group["lr"])
            if filters:
                gradients = [one.grad for one in filters]
                steps = self._with_momentum(filters, gradients, group["momentum"])
                for one in filters:
                    one.mul_(len(one) ** 0.5 / (torch.linalg.vector_norm(one) + EPSILON))
                torch._foreach_add_(filters, _orthogonal(steps), alpha=-group["lr"])

    def _with_momentum(
        self, parameters: list[Tensor], gradients: Tensors, momentum: float
    ) -> Tensors:
        for one in parameters:
            if not self.state[one]:
                self.state[one]["momentum"] = torch.zeros_like(one)
        momenta = [self.state[one]["momentum"] for one in parameters]
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)
        steps: Tensors = torch._foreach_add(gradients, momenta, alpha=momentum)
        return steps


def _orthogonal(steps: Tensors) -> list[Tensor]:
    """Each step orthogonalised as a matrix; those of one shape together."""
    places = defaultdict(list)
    for place, step in enumerate(steps):
        places[step.flatten(1).shape].append(place)
    found = list(steps)
    for alike in places.values():
        matrices = orthogonalise(torch.stack([steps[place].flatten(1) for place in alike]))
        for place, matrix in zip(alike, matrices, strict=True):
            found[place] = matrix.view(steps[place].shape)
    return found
