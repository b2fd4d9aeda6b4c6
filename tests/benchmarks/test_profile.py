from dataclasses import replace
from pathlib import Path

import torch

from data.dataset import load_dataset
from data.split import split_for_training
from tests.benchmarks.accuracy import configuration
from tests.benchmarks.profile import OTHERS, PARTS, of_notebook, of_trial, table


def test_every_part_of_a_step_has_its_time_and_little_is_left(data_cache: Path) -> None:
    whole = split_for_training(load_dataset("cifar10-mini", data_cache), 0.1, 0)
    data = replace(whole, train=whole.train.select(torch.arange(128)))
    ours = of_trial(data, {**configuration("reference"), "width": 4}, "fp32")
    loops = of_notebook(data, 4)
    # In fp32 there is little to convert.
    assert PARTS.keys() - ours.keys() <= {"images by a DataLoader", "conversions to and from bf16"}
    assert PARTS.keys() - loops.keys() <= {
        "augmentation and normalisation",
        "conversions to and from bf16",
    }
    for times in (ours, loops):
        assert min(times.values()) > 0
        assert times[OTHERS] < 0.25 * sum(times.values())
        assert table(times)[-1].startswith("| together | ")
