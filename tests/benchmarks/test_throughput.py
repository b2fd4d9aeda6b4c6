from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.dataset import load_dataset
from data.split import split_for_training
from tests.benchmarks.throughput import Setting, convolutions, measure, summarise, table


@pytest.fixture
def setting(data_cache: Path) -> Setting:
    whole = split_for_training(load_dataset("cifar10-mini", data_cache), 0.1, 0)
    data = replace(whole, train=whole.train.select(torch.arange(128)))
    return Setting(data, torch.device("cpu"), width=4, precision="fp32")


def test_every_contender_trains_and_is_compared(setting: Setting) -> None:
    speeds = measure(setting, rounds=1)
    assert all(speed > 0 for (speed,) in speeds.values())
    lines = table(summarise(speeds))
    assert any(line.startswith("| trial-128 / pytorch-cifar | ") for line in lines)


def test_the_floor_is_of_all_convolutions_of_the_model(setting: Setting) -> None:
    found = convolutions(setting, batch_size=8)
    assert len(found) == 20  # 1 in the stem, 16 in the blocks, 3 in shortcuts
    assert found[0][1] == (8, 3, 32, 32)
    assert found[-1][1] == (8, 32, 4, 4)
