"""When a device's memory is full: what that looks like, and giving back what is not needed."""

import gc

import torch

OUT_OF_MEMORY = (
    "CUDA out of memory",  # In the compiler's own errors.
    "HIP out of memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "Triton Error [HIP]: out of memory",
    "BLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # As cuDNN 9 has it.
    "unable to find an engine",  # cuDNN, where each needs more than there is.
)
"""What libraries say that take memory beside torch."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is for want of a GPU's memory: by its type, or by what it says."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in OUT_OF_MEMORY
    )


def give_back(device: torch.device) -> None:
    """Give a GPU's memory back that torch holds and nothing uses: other libraries take it too.

    Garbage in reference cycles, as an earlier trial may leave, is collected first.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
