"""In which precision a trial computes, and what it asks of CUDA."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# For `deterministic`. cuBLAS and torch read it once, at a process's first product on a GPU, which
# may be of a trial that was not asked to be deterministic, or of what came before any trial.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What convolutions and matrix products are computed in.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`. `auto` is bfloat16 where the hardware computes
            in it natively (GPUs from compute capability 8.0; CPUs with AVX512-bf16 or AMX), float16
            on GPUs from 7.0, whose tensor cores know no other (the GTX 16 series has none), and
            float32 elsewhere.
    """
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return torch.bfloat16
        has_tensor_cores = capability >= (7, 0) and "GTX 16" not in torch.cuda.get_device_name(
            device
        )
        return torch.float16 if has_tensor_cores else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def prepare_cuda(deterministic: bool) -> None:
    """Let CUDA try which convolutions are fastest, or take the ones that always give the same.

    In fp32 products may use TF32. docs.pytorch.org, "Reproducibility" and "CUDA semantics".
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products and convolutions on a GPU in float32, for as long as it lasts.

    From Ampere on they may be in TF32, of 10 bits; cuDNN's are so by default. On a CPU nothing
    changes. docs.pytorch.org, "CUDA semantics".
    """
    cudnn = torch.backends.cudnn
    products = torch.backends.cuda.matmul.fp32_precision == "tf32"
    convolutions = cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    try:
        # What these two set is `fp32_precision` and all that came before it. Parts of torch ask the
        # one or the other, and raise if they disagree.
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision("high" if products else "highest")
        cudnn.allow_tf32 = convolutions
