import os
import runpy
from collections.abc import Iterator

import pytest
import torch

from data.dataset import CIFAR10_NORMALISATION
from model import precision
from model.evaluate import logits
from model.precision import prepare_cuda, without_tf32
from model.resnet import ResNet

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def tf32() -> tuple[bool, bool]:
    """Whether matrix products and convolutions may use it; the settings are there without a GPU."""
    products = MATMUL.fp32_precision == "tf32"
    convolutions = CUDNN.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    # The older settings; they raise where the two kinds disagree.
    assert (MATMUL.allow_tf32, CUDNN.allow_tf32) == (products, convolutions)
    assert torch.get_float32_matmul_precision() == ("high" if products else "highest")
    return products, convolutions


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They are afterwards as they were."""
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(CUDNN, name, getattr(CUDNN, name))
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def test_cuda_tries_what_is_fastest_or_takes_what_is_always_the_same() -> None:
    CUDNN.allow_tf32 = False
    for deterministic in (True, False):
        prepare_cuda(deterministic)
        assert CUDNN.benchmark is not deterministic
        assert CUDNN.deterministic is deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert tf32() == (True, True)


def test_evaluation_is_not_in_tf32_whatever_the_training_is_in() -> None:
    prepare_cuda(deterministic=False)
    model = ResNet(10, width=2)
    seen: list[tuple[bool, bool]] = []
    model.register_forward_pre_hook(lambda *_: seen.append(tf32()))
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    logits(model, images, CIFAR10_NORMALISATION)
    assert seen == [(False, False)]
    assert tf32() == (True, True)


def test_tf32_comes_back_after_an_error_too() -> None:
    prepare_cuda(deterministic=False)

    @without_tf32()
    def fail() -> None:
        assert tf32() == (False, False)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert tf32() == (True, True)


@pytest.mark.parametrize(("before", "after"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_cublas_can_be_deterministic_whenever_it_is_first_used(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    """It reads this once, maybe long before a trial asks for it."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if before:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before)
    assert precision.__file__ is not None
    runpy.run_path(precision.__file__)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == after
