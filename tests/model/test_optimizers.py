from itertools import pairwise

import pytest
import torch
from torch import nn

from model.optimizers import OPTIMIZERS, SCHEDULES, make_scheduler

RATES = {"sgd": 0.05, "adagrad": 0.05, "adadelta": 1.0}


def test_all_optimizers_of_the_notebook_are_there() -> None:
    assert set(OPTIMIZERS) == {
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


def test_sgd_has_nesterov_momentum() -> None:
    (group,) = OPTIMIZERS["sgd"]([nn.Parameter(torch.ones(2))], 0.1, 0.0).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def rates(schedule: str, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=2.0)
    scheduler = make_scheduler(schedule, optimizer, steps)
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


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_never_negative_or_above_the_full_rate(name: str) -> None:
    assert all(0 <= SCHEDULES[name](step / 7) <= 1 for step in range(8))
