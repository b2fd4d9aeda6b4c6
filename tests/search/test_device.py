from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

from data.dataset import CIFAR10_NORMALISATION, Split
from data.split import TrainingData
from search import device as module
from search.device import dtype_name, placed, take, taken_device

CUDA = torch.device("cuda")


def test_each_worker_takes_the_gpu_that_the_fewest_use(tmp_path: Path) -> None:
    taken = [take(["a", "b"], tmp_path) for _ in range(5)]
    assert [index for index, _ in taken] == [0, 1, 0, 1, 0]


def test_a_gpu_that_was_given_back_is_taken_first(tmp_path: Path) -> None:
    taken = [take(["a", "b"], tmp_path) for _ in range(4)]
    taken[1][1].release()
    assert take(["a", "b"], tmp_path)[0] == 1


def test_a_gpu_is_given_back_when_it_is_used_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not when what has held it is collected."""
    locks: list[FileLock] = []

    def remembered(*arguments: Any) -> tuple[int, FileLock]:
        index, lock = take(*arguments)
        locks.append(lock)
        return index, lock

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(module, "take", remembered)
    monkeypatch.setattr(module, "check_occupation", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(uuid="0fee9b0a")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    with suppress(KeyboardInterrupt), taken_device(tmp_path) as device:
        assert device == torch.device("cuda", 0)
        assert locks[0].is_locked
        raise KeyboardInterrupt
    assert not locks[0].is_locked
    with taken_device(tmp_path):
        assert locks[1].lock_file == locks[0].lock_file


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")],
)
def test_images_that_do_not_fit_stay_where_they_are_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    split = Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
    data = TrainingData(split, split, ("a", "b"), CIFAR10_NORMALISATION)

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(Split, "to", full)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    assert placed(data, CUDA) is data
    assert caplog.messages == [
        "the images do not fit into the memory of NVIDIA A100; they stay in the host's, and each "
        "batch is sent by itself"
    ]


def test_what_else_goes_wrong_with_images_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    split = Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
    monkeypatch.setattr(Split, "to", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        placed(TrainingData(split, split, ("a", "b"), CIFAR10_NORMALISATION), CUDA)


def test_a_record_says_what_a_trial_is_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert dtype_name("fp32", cpu) == "float32"
    for has, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert dtype_name("auto", cpu) == name


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_the_cpu_is_used(tmp_path: Path) -> None:
    with taken_device(tmp_path) as device:
        assert device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_of_this_machine_is_taken(tmp_path: Path) -> None:
    with taken_device(tmp_path) as device:
        assert device == torch.device("cuda", 0)
