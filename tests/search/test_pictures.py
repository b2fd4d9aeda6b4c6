import pytest
import torch

from search.pictures import COLUMNS, GAP, TILE, colored_maps, row_of


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (COLUMNS + 1, 8, 2)])
def test_maps_are_whole_however_few_they_are(count: int, columns: int, rows: int) -> None:
    maps = torch.rand(count, 16, 16)
    maps[:, 0, 0], maps[:, -1, -1] = 0.0, 2.0
    shown = colored_maps(maps)
    step = TILE + GAP
    assert shown.shape == (3, rows * step - GAP, columns * step - GAP)
    # Viridis, from its first colour to its last.
    assert shown[:, 0, 0].tolist() == [68, 1, 84]
    assert shown[:, TILE - 1, TILE - 1].tolist() == [253, 231, 37]


def test_images_of_a_row_are_whole_however_few_they_are() -> None:
    images = torch.randint(255, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(row_of([images[0]]), images[0])
    row = row_of(list(images))
    assert row.shape == (3, 32, 3 * 33 - 1)
    assert torch.equal(row[:, :, 66:], images[2])
