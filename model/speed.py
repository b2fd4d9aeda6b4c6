"""How long a model takes to answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy
from torch import Tensor, nn

from data.dataset import Normalisation
from model.evaluate import logits

WARM_UP = 3
"""Queries that are not counted: kernels are chosen and memory is taken in the first ones."""
FEWEST, MOST = 20, 1000
"""Queries that are counted, as many as fit into the time."""
SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Speed:
    """Of queries of one size: uint8 images in the host's memory in, probabilities there out."""

    batch_size: int
    queries: int
    median_seconds: float
    p99_seconds: float
    """99 of 100 queries take no longer; of few queries, it is almost the longest."""

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.median_seconds


def measure_speed(
    model: nn.Module,
    images: Tensor,
    normalisation: Normalisation,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Ask a model again and again about the same images.

    Args:
        images: uint8 of shape (N, 3, 32, 32), N > 0.
        seconds: after so long no further query is begun, once there are `FEWEST`.
    """
    for _ in range(WARM_UP):
        logits(model, images, normalisation).softmax(dim=1).cpu()
    times: list[float] = []
    while len(times) < FEWEST or (len(times) < MOST and sum(times) < seconds):
        started = clock()
        # What is copied to the host has been computed: no GPU need be waited for.
        logits(model, images, normalisation).softmax(dim=1).cpu()
        times.append(clock() - started)
    median, p99 = numpy.quantile(times, [0.5, 0.99])
    return Speed(len(images), len(times), float(median), float(p99))
