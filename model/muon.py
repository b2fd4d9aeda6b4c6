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

    An iteration is X' = P X with P = a + b S + c S^2 and S = X X^T; so S' = P S P, and X itself is
    needed at the start and at the end alone. Filters have some nine times as many columns as rows,
    and for them that is half of the work. In bf16 the result is 0.7% off, where the iterations on X
    are 0.4% off (a random matrix of 512 x 4608).

    Args:
        matrices: shape (N, rows, columns). Under autocast they are multiplied in its precision.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # So that the products are of the smaller size.
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPSILON)
    kind = matrices.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))  # Once, and not for each product.

    def polynomial(squares: Tensor) -> Tensor:
        found = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        found.diagonal(dim1=1, dim2=2).add_(a)
        return found

    squares = torch.bmm(x, x.mT)
    product = factor = polynomial(squares)
    for _ in range(ITERATIONS - 1):
        squares = torch.bmm(torch.bmm(factor, squares), factor)
        factor = polynomial(squares)
        product = torch.bmm(factor, product)
    x = torch.bmm(product, x)
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
                norms = torch._foreach_norm(filters)
                torch._foreach_add_(norms, EPSILON)
                torch._foreach_mul_(filters, [len(one) ** 0.5 for one in filters])
                torch._foreach_div_(filters, norms)
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
    # In whichever order the columns are, it is the same: in that of channels_last, in which the
    # filters of a trial lie, nothing need be moved.
    rows = [step.permute(0, 2, 3, 1) for step in steps]
    places = defaultdict(list)
    for place, row in enumerate(rows):
        places[row.flatten(1).shape].append(place)
    found = list(steps)
    for alike in places.values():
        matrices = orthogonalise(torch.stack([rows[place].flatten(1) for place in alike]))
        for place, matrix in zip(alike, matrices, strict=True):
            found[place] = matrix.view(rows[place].shape).permute(0, 3, 1, 2)
    return found
