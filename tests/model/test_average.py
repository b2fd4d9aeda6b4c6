import pytest
import torch
from torch import nn

from model.average import MovingAverage


def network(level: float, batches: int = 0) -> nn.BatchNorm2d:
    model = nn.BatchNorm2d(2)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(level)
    model.num_batches_tracked = torch.tensor(batches)
    return model


def test_the_average_is_the_weighted_mean_of_all_states_but_the_first() -> None:
    average = MovingAverage(network(100.0), decay=0.9)
    for level, steps in ((1.0, 5), (2.0, 5), (4.0, 2)):
        average.update(network(level), steps)
    # Each state stands for the steps before it; the weights of twelve steps add up to one.
    weights = [sum(0.9**age for age in ages) for ages in (range(7, 12), range(2, 7), range(2))]
    expected = (1 * weights[0] + 2 * weights[1] + 4 * weights[2]) / sum(weights)
    assert sum(weights) == pytest.approx((1 - 0.9**12) / 0.1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(
            average.model.state_dict()[name], torch.full((2,), expected), msg=name
        )


def test_after_one_update_it_is_the_model_itself() -> None:
    average = MovingAverage(network(100.0), decay=0.99)
    average.update(network(0.1), 5)
    assert torch.equal(average.model.state_dict()["weight"], torch.full((2,), 0.1))


def test_the_number_of_batches_is_the_latest() -> None:
    average = MovingAverage(network(1.0), decay=0.99)
    average.update(network(1.0, batches=5), 5)
    average.update(network(1.0, batches=10), 5)
    assert int(average.model.state_dict()["num_batches_tracked"]) == 10


def test_the_model_is_not_changed() -> None:
    model = network(1.0)
    average = MovingAverage(model, decay=0.5)
    average.update(network(3.0), 1)
    assert torch.equal(model.weight, torch.ones(2))
