from dataclasses import replace
from pathlib import Path

import torch

from data.dataset import load_dataset
from data.split import split_for_training
from tests.benchmarks.accuracy import configuration
from tests.benchmarks.profile import OTHERS, PARTS, milliseconds_by_part, table


def test_every_part_of_a_step_has_its_time_and_little_is_left(data_cache: Path) -> None:
    whole = split_for_training(load_dataset("cifar10-mini", data_cache), 0.1, 0)
    data = replace(whole, train=whole.train.select(torch.arange(128)))
    parameters = {**configuration("reference"), "width": 4}
    times = milliseconds_by_part(data, parameters, "fp32")
    missing = PARTS.keys() - times.keys()
    assert missing <= {"conversions to and from bf16"}, "of which there are few in fp32"
    assert min(times.values()) > 0
    assert times[OTHERS] < 0.25 * sum(times.values())
    assert table(times)[-1].startswith("| together | ")
