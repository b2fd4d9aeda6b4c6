import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from data.dataset import load_dataset
from data.split import split_for_training
from tests.benchmarks import throughput
from tests.benchmarks.throughput import (
    REFERENCE_UPDATE,
    Setting,
    contenders,
    convolutions,
    measure,
    summarise,
    table,
)


@pytest.fixture
def setting(data_cache: Path) -> Setting:
    whole = split_for_training(load_dataset("cifar10-mini", data_cache), 0.1, 0)
    data = replace(whole, train=whole.train.select(torch.arange(128)))
    return Setting(data, torch.device("cpu"), width=4, precision="fp32")


STEPS = {
    **{"notebook": 2, "notebook-2": 2, "pytorch-cifar": 1, "scratch-64": 2},
    **{"trial-64": 2, "step-64": 2, "floor-64": 0, "trial-128": 1, "step-128": 1, "floor-128": 0},
    "reference": math.ceil(128 / REFERENCE_UPDATE["batch_size"]),
}
"""In an epoch of 128 images."""


def test_every_contender_trains_and_is_compared(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of each optimizer changes each filter, and the floor has none."""
    steps: list[bool] = []
    before: list[Tensor] = []

    def filters(optimizer: Optimizer) -> list[Tensor]:
        parameters = itertools.chain(*(group["params"] for group in optimizer.param_groups))
        return [one for one in parameters if one.ndim == 4]

    def note(optimizer: Optimizer, *_: object) -> None:
        before[:] = [one.detach().clone() for one in filters(optimizer)]

    def compare(optimizer: Optimizer, *_: object) -> None:
        pairs = zip(before, filters(optimizer), strict=True)
        steps.append(not any(torch.equal(first, second) for first, second in pairs))

    found = contenders(setting)

    def watched(name: str) -> int:
        steps.clear()
        trained = found[name]()
        assert (steps, trained) == ([True] * STEPS[name], 128), name
        return trained

    watching = {name: partial(watched, name) for name in found}
    monkeypatch.setattr(throughput, "contenders", lambda _: watching)
    hooks = register_optimizer_step_pre_hook(note), register_optimizer_step_post_hook(compare)
    try:
        speeds = measure(setting, rounds=1)
    finally:
        for hook in hooks:
            hook.remove()
    assert speeds.keys() == STEPS.keys()
    lines = table(summarise(speeds))
    assert any(line.startswith("| trial-128 / pytorch-cifar | ") for line in lines)
    assert any(line.startswith("| reference / trial-") for line in lines)


def test_the_floor_is_of_all_convolutions_of_the_model(setting: Setting) -> None:
    found = convolutions(setting, batch_size=8)
    assert len(found) == 20  # 1 in the stem, 16 in the blocks, 3 in shortcuts
    assert found[0][1] == (8, 3, 32, 32)
    assert found[-1][1] == (8, 32, 4, 4)
