import weakref

import pytest
import torch

from model.memory import give_back, is_out_of_memory

MESSAGES = [
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_gpu_that_is_full_is_known_by_what_is_said(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_a_gpu_that_is_full_is_known_by_the_type_of_the_error() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no more"))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "cc1plus: out of memory allocating 65536 bytes",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_other_errors_are_not_taken_for_it(message: str) -> None:
    assert not is_out_of_memory(RuntimeError(message))


def test_only_a_gpu_s_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    give_back(torch.device("cpu"))
    assert emptied == []
    give_back(torch.device("cuda"))
    assert emptied == ["cuda"]


class Kept:
    """What refers to itself, as what an exception has passed may do."""

    def __init__(self) -> None:
        self.itself = self


def test_what_a_trial_has_left_is_collected_before_a_gpu_s_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = weakref.ref(Kept())
    found: list[object] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append(left()))
    give_back(torch.device("cuda"))
    assert found == [None]
