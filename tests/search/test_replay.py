from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from search.replay import _differences
from studies.config import load_study_file
from studies.results import DEVICE, DTYPE, FALLBACKS, THREADS
from studies.storage import open_storage
from studies.study import OpenedStudy, create_or_continue

CPU = torch.device("cpu")


def create(tmp_path: Path, settings: dict[str, Any]) -> OpenedStudy:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    config = load_study_file("quickstart", settings)
    return create_or_continue(storage, config, "digest", [], {})[0]


@pytest.fixture
def opened(tmp_path: Path) -> OpenedStudy:
    return create(tmp_path, {})


def test_what_it_was_computed_in_is_compared_if_it_was_recorded(
    opened: OpenedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two CPUs, both called `cpu`, one may have bfloat16 and the other not."""
    recorded = {DEVICE: "cpu", THREADS: torch.get_num_threads()}
    for attributes in (recorded, {**recorded, DTYPE: "bfloat16"}):
        opened.study.add_trial(optuna.create_trial(value=0.5, user_attrs=attributes))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has, differences in ((True, ()), (False, ("dtype: then bfloat16, now float32",))):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert tuple(_differences(opened, 0, CPU, ())) == ()
        assert tuple(_differences(opened, 1, CPU, ())) == differences


def test_what_was_done_in_another_way_is_compared(opened: OpenedStudy) -> None:
    parts = "batches in parts of 32 images at most"
    for attributes in ({}, {FALLBACKS: parts}):
        recorded = {DEVICE: "cpu", THREADS: torch.get_num_threads(), **attributes}
        opened.study.add_trial(optuna.create_trial(value=0.5, user_attrs=recorded))
    found = [tuple(_differences(opened, n, CPU, now)) for n in (0, 1) for now in ((), (parts,))]
    then, now = f"fallbacks: then {parts}, now none", f"fallbacks: then none, now {parts}"
    assert found == [(), (now,), (then,), ()]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpu_that_was_not_asked_to_be_deterministic_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    opened = create(tmp_path, {"trial.deterministic": deterministic})
    recorded = {DEVICE: "NVIDIA A100", THREADS: torch.get_num_threads()}
    opened.study.add_trial(optuna.create_trial(value=0.5, user_attrs=recorded))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    found = tuple(_differences(opened, 0, torch.device("cuda"), ()))
    assert [text.partition(":")[0] for text in found] == (
        [] if deterministic else ["the study is not deterministic"]
    )
