import torch

from data.augment import PARTS
from tests.benchmarks.augmentation import COLOR_JITTER, TORCHVISION, measure, table


def test_each_part_has_its_row_and_torchvision_s_beside_it_where_there_is_one() -> None:
    found = measure(torch.device("cpu"), rounds=1)
    assert list(found) == [*PARTS, COLOR_JITTER]
    assert {part for part, (_, others) in found.items() if others} == set(TORCHVISION)
    assert all(mine > 0 for mine, _ in found.values())
    assert len(table(found)) == 2 + len(found)
