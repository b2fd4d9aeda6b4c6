import torch
from torch import nn

from model.lion import Lion


def test_steps_are_those_of_the_paper() -> None:
    """Algorithm 2, by hand: rate 0.1, decay 0.5, gradients 2 and then -1."""
    weight = nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
    optimizer = Lion([weight], lr=0.1, weight_decay=0.5)

    weight.grad = torch.full_like(weight, 2.0)
    optimizer.step()
    # The direction is sign(0.9 * 0 + 0.1 * 2) = 1; the momentum becomes 0.01 * 2.
    expected = torch.tensor([1.0 * 0.95 - 0.1, -1.0 * 0.95 - 0.1], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected)

    weight.grad = torch.full_like(weight, -1.0)
    optimizer.step()
    # sign(0.9 * 0.02 + 0.1 * -1) = -1; the momentum becomes 0.99 * 0.02 + 0.01 * -1.
    torch.testing.assert_close(weight.detach(), expected * 0.95 + 0.1)
    momentum = optimizer.state[weight]["momentum"]
    torch.testing.assert_close(momentum, torch.full_like(momentum, 0.0098))

    weight.grad = torch.full_like(weight, -0.05)
    optimizer.step()
    # sign(0.9 * 0.0098 + 0.1 * -0.05) = 1: the momentum outweighs the gradient.
    torch.testing.assert_close(weight.detach(), (expected * 0.95 + 0.1) * 0.95 - 0.1)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    trained, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    trained.grad = torch.ones(2)
    Lion([trained, frozen], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(frozen, torch.ones(2))
    assert not torch.equal(trained, torch.ones(2))
