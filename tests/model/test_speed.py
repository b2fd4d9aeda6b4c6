import itertools

import pytest
import torch

from data.dataset import CIFAR10_NORMALISATION
from model.resnet import ResNet
from model.speed import FEWEST, measure_speed

IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)


def test_the_median_and_the_99th_percentile_are_of_the_queries() -> None:
    """One of twenty takes 8 s by this clock, the others 2 s."""
    durations = itertools.cycle([2.0] * (FEWEST - 1) + [8.0])
    times = itertools.accumulate(
        itertools.chain.from_iterable((0.5, next(durations)) for _ in itertools.count())
    )
    model = ResNet(2, width=4)
    found = measure_speed(model, IMAGES, CIFAR10_NORMALISATION, 1.0, lambda: next(times))
    assert (found.batch_size, found.queries) == (2, FEWEST)
    assert found.median_seconds == 2.0
    # Of 20 values, 99% of the way is 0.81 between the two largest.
    assert found.p99_seconds == pytest.approx(2 + 0.81 * 6)
    assert found.images_per_second == 1.0


def test_more_queries_are_made_as_long_as_there_is_time() -> None:
    ticks = itertools.count()
    model = ResNet(2, width=4)
    found = measure_speed(
        model, IMAGES[:1], CIFAR10_NORMALISATION, 30.0, lambda: float(next(ticks))
    )
    assert (found.batch_size, found.queries) == (1, 30)
