from pathlib import Path

import optuna
import pytest
import torch

from search.replay import _differences
from studies.config import load_study_file
from studies.results import DEVICE, DTYPE, THREADS
from studies.storage import open_storage
from studies.study import create_or_continue

CPU = torch.device("cpu")


def test_what_it_was_computed_in_is_compared_if_it_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two CPUs, both called `cpu`, one may have bfloat16 and the other not."""
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    opened, _ = create_or_continue(storage, load_study_file("quickstart"), "digest", [], {})
    recorded = {DEVICE: "cpu", THREADS: torch.get_num_threads()}
    for attributes in (recorded, {**recorded, DTYPE: "bfloat16"}):
        opened.study.add_trial(optuna.create_trial(value=0.5, user_attrs=attributes))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has, differences in ((True, ()), (False, ("dtype: then bfloat16, now float32",))):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert tuple(_differences(opened, 0, CPU)) == ()
        assert tuple(_differences(opened, 1, CPU)) == differences
