"""How the benchmark of other optimizers charges for epochs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks.peers import Task, simulate
from tests.benchmarks.problems import Scale
from tests.benchmarks.search import Run

RUN = Run("halving", "rising", seed=0, workers=1, epochs=33)


class Rising:
    """Curves that rise to the value of their only parameter."""

    name = "rising"
    space: Mapping[str, Any] = {"x": {"low": 0.0, "high": 1.0}}
    scale = Scale(best=1.0, median=0.5)

    def curve(self, parameters: Mapping[str, Any], seed: int) -> NDArray[np.float64]:
        return np.linspace(0.1, 1.0, 10) * float(parameters["x"])

    def truth(self, parameters: Mapping[str, Any]) -> float:
        return float(parameters["x"])


class Halving:
    """Three trials of three epochs; the best one goes on to ten, and then all over again."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, float]] = []
        self._asked = 0

    def ask(self) -> Task:
        turn, step = divmod(self._asked, 4)
        self._asked += 1
        number = 3 * turn + min(step, 2)
        return Task(number, {"x": 0.5 + 0.1 * number}, 3 if step < 3 else 10)

    def tell(self, task: Task, epoch: int, value: float) -> bool:
        self.told.append((task.trial, epoch, value))
        return True


def test_a_trial_that_goes_on_is_charged_for_its_further_epochs_alone() -> None:
    peer = Halving()
    result = simulate(Rising(), peer, RUN)
    first_turn = [(trial, epoch) for trial, epoch, _ in peer.told[:16]]
    assert first_turn == [
        *((trial, epoch) for trial in range(3) for epoch in (1, 2, 3)),
        *((2, epoch) for epoch in range(4, 11)),
    ]
    assert len(result.regret) == len(peer.told) == 33
    assert result.complete == 2


def test_only_a_trial_with_all_its_epochs_counts() -> None:
    result = simulate(Rising(), Halving(), RUN)
    # The first trial to be complete is the third, with 0.7, in epoch 3 + 3 + 10.
    assert set(result.regret[:15]) == {1.0}
    assert result.regret[15] == pytest.approx(0.6)


def test_a_peer_that_asks_for_epochs_it_has_had_is_an_error() -> None:
    class Stuck(Halving):
        def ask(self) -> Task:
            return Task(0, {"x": 0.5}, 3)

    with pytest.raises(RuntimeError, match="epochs that it has had"):
        simulate(Rising(), Stuck(), RUN)
