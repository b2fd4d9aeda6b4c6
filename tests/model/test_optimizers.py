import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from model.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_scheduler

RATES = {"sgd": 0.05, "adagrad": 0.05, "adadelta": 1.0, "lion": 1e-3, "muon": 0.05}


def test_all_optimizers_of_the_notebook_are_there() -> None:
    assert set(OPTIMIZERS) >= {
        *("sgd", "adam", "adamw", "rmsprop"),
        *("adagrad", "adadelta", "adamax", "nadam"),
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    inputs, labels = torch.randn(32, 8), torch.arange(32) % 3
    optimizer = OPTIMIZERS[name](model.parameters(), RATES.get(name, 0.01), 0.0)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_and_the_weight_decay_arrive(name: str) -> None:
    optimizer = OPTIMIZERS[name]([nn.Parameter(torch.ones(2))], 0.125, 0.25)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.125, 0.25)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_weights(name: str) -> None:
    weights = {}
    for decay in (0.0, 0.1):
        parameter = nn.Parameter(torch.ones(4))
        optimizer = OPTIMIZERS[name]([parameter], 0.01, decay)
        for _ in range(5):
            parameter.grad = torch.zeros(4)
            optimizer.step()
        weights[decay] = float(parameter.detach().mean())
    assert weights[0.1] < weights[0.0] == 1.0


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(8, 3, 4, 4, generator=generator)
        loss = nn.functional.cross_entropy(model(inputs), torch.arange(8) % 2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_batch_norm_and_biases_are_not_decayed(name: str) -> None:
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(name, model, 0.01, weight_decay=0.1)
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        shrunk = bool(parameter.detach().norm() < 0.9999 * before[parameter_name].norm())
        if parameter_name in ("1.weight", "1.bias", "3.bias"):
            assert torch.equal(parameter, before[parameter_name]), parameter_name
        elif name == "muon" and parameter_name == "0.weight":
            continue  # It is scaled to a fixed norm instead.
        else:
            assert shrunk, parameter_name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_trained(name: str) -> None:
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    step(model, make_optimizer(name, model, 0.01, 0.0), steps=1, seed=0)
    for parameter_name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[parameter_name]), parameter_name


def test_what_is_fixed_is_left_out() -> None:
    model = small_network()
    model[0].weight.requires_grad_(False)
    groups = make_optimizer("sgd", model, 0.01, 0.1).param_groups
    assert [len(group["params"]) for group in groups] == [1, 3]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_from_its_saved_state(name: str) -> None:
    whole, first = small_network(), small_network()
    optimizer = make_optimizer(name, whole, 0.01, 0.1)
    step(whole, optimizer, steps=3, seed=0)
    step(whole, optimizer, steps=2, seed=1)
    before = make_optimizer(name, first, 0.01, 0.1)
    step(first, before, steps=3, seed=0)
    second = copy.deepcopy(first)
    after = make_optimizer(name, second, 0.5, 0.0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    step(second, after, steps=2, seed=1)
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


def test_sgd_has_nesterov_momentum() -> None:
    (group,) = OPTIMIZERS["sgd"]([nn.Parameter(torch.ones(2))], 0.1, 0.0).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_the_momentum_arrives() -> None:
    for name in ("sgd", "muon"):
        for group in make_optimizer(name, small_network(), 0.1, 0.0, momentum=0.7).param_groups:
            assert group["momentum"] == 0.7


def test_sgd_without_momentum_is_plain_descent() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS["sgd"]([parameter], 0.125, 0.0, 0.0)
    for _ in range(2):
        parameter.grad = torch.ones(2)
        optimizer.step()
    assert parameter.tolist() == [0.75, 0.75]


def rates(schedule: str, steps: int, peak_fraction: float = 0.25) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=2.0)
    scheduler = make_scheduler(schedule, optimizer, steps, peak_fraction)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_the_constant_schedule_is_the_full_rate_throughout() -> None:
    assert rates("constant", 10) == [2.0] * 11


def test_one_cycle_goes_up_in_the_first_quarter_and_down_to_zero() -> None:
    found = rates("one-cycle", 100)
    assert found[0] == pytest.approx(0.2 * 2.0)
    assert max(found) == found[25] == pytest.approx(2.0)
    assert found[-1] == pytest.approx(0.0)
    assert all(before < after for before, after in pairwise(found[:26]))
    assert all(before > after for before, after in pairwise(found[25:]))


def test_the_cosine_goes_up_as_the_triangle_does_and_down_by_half_a_cosine() -> None:
    found = rates("one-cycle-cosine", 100)
    assert found[:26] == rates("one-cycle", 100)[:26]
    assert found[50] == pytest.approx(2.0 * (1 + math.cos(math.pi / 3)) / 2)
    assert found[-1] == pytest.approx(0.0)
    assert all(before > after for before, after in pairwise(found[25:]))


@pytest.mark.parametrize("name", ["one-cycle", "one-cycle-cosine"])
def test_the_place_of_the_peak_can_be_chosen(name: str) -> None:
    found = rates(name, 100, peak_fraction=0.4)
    assert max(found) == found[40] == pytest.approx(2.0)
    found = rates(name, 100, peak_fraction=0.0)
    assert max(found) == found[0] == 2.0
    assert found[50] == pytest.approx(1.0)


@pytest.mark.parametrize("peak_fraction", [0.0, 0.25, 0.99])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_never_negative_or_above_the_full_rate(
    name: str, peak_fraction: float
) -> None:
    assert all(0 <= SCHEDULES[name](step / 7, peak_fraction) <= 1 for step in range(8))
