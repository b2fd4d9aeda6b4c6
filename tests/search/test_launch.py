import os
from pathlib import Path

import pytest
import torch

from search.gpus import visible_gpus
from search.launch import plan_slots


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    count, visible = request.param
    monkeypatch.setenv("PATH", str(tmp_path))  # Where there is no nvidia-smi.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(request.param)))


@pytest.mark.parametrize("gpus", [(0, None)], indirect=True)
@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(2, None, ["1", "1"]), (8, None, ["2"] * 4), (8, 2, ["4", "4"]), (2, 3, ["1"] * 3)],
    indirect=["cores"],
)
@pytest.mark.usefixtures("gpus", "cores")
def test_workers_on_a_cpu_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, threads: list[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    slots = plan_slots(workers, workers_per_gpu=1)
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == threads
    assert {slot.device for slot in slots} == {"cpu"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    slots = plan_slots(workers, workers_per_gpu=1)
    assert {slot.environment["OMP_NUM_THREADS"] for slot in slots} == {"3"}, "if the user says so"


@pytest.mark.parametrize(
    ("gpus", "workers", "workers_per_gpu", "devices"),
    [
        ((2, None), None, 1, ["0", "1"]),
        ((2, None), None, 2, ["0", "1", "0", "1"]),
        ((4, None), 2, 1, ["0", "1"]),
        ((2, "3,5"), None, 1, ["3", "5"]),
        ((1, "GPU-8932f937"), None, 1, ["GPU-8932f937"]),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_each_worker_sees_one_gpu(
    workers: int | None, workers_per_gpu: int, devices: list[str]
) -> None:
    slots = plan_slots(workers, workers_per_gpu)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpus_of_this_machine_are_found() -> None:
    assert len(visible_gpus()) == torch.cuda.device_count() > 0
