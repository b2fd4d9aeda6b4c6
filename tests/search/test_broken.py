import pytest
import torch

from search.broken import is_broken
from tests.model.test_memory import MESSAGES


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("backend='inductor' raised:\nRuntimeError: CUDA error: unspecified failure"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        torch.AcceleratorError("uncorrectable ECC error encountered"),
        MemoryError(),
    ],
    ids=str,
)
def test_an_error_of_the_process_or_the_machine_is_told_from_one_of_the_trial(
    error: Exception,
) -> None:
    assert is_broken(error)


@pytest.mark.parametrize(
    "error",
    [
        *map(RuntimeError, MESSAGES),
        *map(torch.AcceleratorError, MESSAGES),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA error: is not what a ValueError speaks of"),
        KeyError("of another version"),
    ],
    ids=str,
)
def test_a_trial_that_is_too_large_or_wrong_breaks_no_worker(error: Exception) -> None:
    assert not is_broken(error)
