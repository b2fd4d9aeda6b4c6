from pathlib import Path

import pytest
import torch

from search.device import take, taken_device


def test_each_worker_takes_the_gpu_that_the_fewest_use(tmp_path: Path) -> None:
    taken = [take(["a", "b"], tmp_path) for _ in range(5)]
    assert [index for index, _ in taken] == [0, 1, 0, 1, 0]


def test_a_gpu_that_was_given_back_is_taken_first(tmp_path: Path) -> None:
    taken = [take(["a", "b"], tmp_path) for _ in range(4)]
    taken[1][1].release()
    assert take(["a", "b"], tmp_path)[0] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_the_cpu_is_used(tmp_path: Path) -> None:
    with taken_device(tmp_path) as device:
        assert device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_of_this_machine_is_taken(tmp_path: Path) -> None:
    with taken_device(tmp_path) as device:
        assert device == torch.device("cuda", 0)
