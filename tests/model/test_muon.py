import pytest
import torch
from torch import Tensor, nn

from model.muon import Muon, orthogonalise


def by_singular_values(matrix: Tensor) -> Tensor:
    """Newton-Schulz as what it is: a polynomial of each singular value, three times."""
    u, values, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(3):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    found: Tensor = u @ values.diag() @ v
    return found


@pytest.mark.parametrize("shape", [(4, 8, 20), (3, 20, 8), (2, 8, 8), (1, 1, 5)])
def test_it_is_a_polynomial_of_the_singular_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    expected = torch.stack([by_singular_values(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_singular_values_become_about_one(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 16, 144) * torch.tensor([1e-8, 1.0, 10.0, 1e3])[:, None, None]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        found = orthogonalise(matrices)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert 0.65 < values.min() <= values.max() < 1.25


def test_a_gradient_of_zero_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_steps_are_those_of_the_formula() -> None:
    """Two steps in double precision, each parameter by itself, against batches by shape."""
    torch.manual_seed(0)
    shapes = [(4, 3, 3, 3), (8, 4, 3, 3), (8, 4, 3, 3), (8, 2, 1, 1), (5, 8), (5,)]
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    expected = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros_like(parameter) for parameter in expected]
    optimizer = Muon(parameters, lr=0.2, momentum=0.6, weight_decay=0.01)
    for _ in range(2):
        for place, parameter in enumerate(parameters):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient
            weight = expected[place]
            if parameter.ndim != 4:
                gradient = gradient + 0.01 * weight
            momenta[place] = 0.6 * momenta[place] + gradient
            step = gradient + 0.6 * momenta[place]
            if parameter.ndim == 4:
                weight = weight * len(weight) ** 0.5 / weight.norm()
                step = by_singular_values(step.flatten(1)).view(step.shape)
            expected[place] = weight - 0.2 * step
        optimizer.step()
    for parameter, weight in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, atol=1e-5, rtol=1e-5)


def test_the_memory_format_is_kept_and_makes_no_difference() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(weight.clone(memory_format=memory_format))
        parameter.grad = gradient.clone(memory_format=memory_format)
        Muon([parameter], lr=0.2, momentum=0.6).step()
        assert parameter.is_contiguous(memory_format=memory_format)
        found.append(parameter.detach())
    torch.testing.assert_close(*found)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    trained, frozen = (nn.Parameter(torch.ones(2, 1, 3, 3)) for _ in range(2))
    trained.grad = torch.randn(2, 1, 3, 3)
    Muon([trained, frozen], lr=0.1, momentum=0.6).step()
    assert torch.equal(frozen, torch.ones(2, 1, 3, 3))
