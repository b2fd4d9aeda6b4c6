import argparse
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.hyperparameters import NOTEBOOK, REFERENCE, parse_hyperparameters
from tests.benchmarks.accuracy import configuration, table, train_one

ROOT = Path(__file__).parents[2]


def test_a_configuration_is_named_and_can_be_changed() -> None:
    assert configuration("notebook") == NOTEBOOK
    assert configuration("reference").items() >= REFERENCE.items()
    changed = configuration("reference:ema=0.5,augmentation=flip+crop")
    assert changed == {**NOTEBOOK, **REFERENCE, "ema": 0.5, "augmentation": "flip+crop"}
    for name in ("notebook", "pytorch-cifar", "reference"):
        parse_hyperparameters(configuration(name))


def test_the_readme_names_the_configurations_of_its_table() -> None:
    names = re.findall(r"`((?:notebook|reference):\S+)`", (ROOT / "README.md").read_text())
    sgd, nadam = (parse_hyperparameters(configuration(name)) for name in names)
    assert (sgd.optimizer, sgd.schedule, sgd.ema) == ("sgd", "one-cycle", 0.998)
    assert (nadam.optimizer, nadam.schedule, nadam.ema) == ("nadam", "one-cycle", 0.0)


def test_each_configuration_is_trained_once_and_stands_in_the_table(
    tmp_path: Path, data_cache: Path
) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "tests.benchmarks.accuracy", "--images", "100", "--width", "2"]
    command += ["--seeds", "1", "--processes", "2", "--cache", str(data_cache), "--log", str(log)]
    command += ["--configurations", "notebook", "reference:batch_size=50"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows.sort(key=lambda row: row["configuration"])
    assert [row["configuration"] for row in rows] == ["notebook", "reference:batch_size=50"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[:4] == table(rows)
    assert again.stdout.splitlines() == first.stdout.splitlines()[-6:]
    assert f"torch {torch.__version__}" in again.stdout
    assert list(tmp_path.iterdir()) == [log], "no state is left"


def test_an_interrupted_training_goes_on(
    tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = argparse.Namespace(
        **{"data": "cifar10-mini", "cache": data_cache, "log": tmp_path / "log", "images": 100},
        **{"width": 2, "precision": "fp32"},
    )
    job = ("reference", 0, arguments, 1)
    whole = train_one(job)
    (state,) = tmp_path.iterdir()
    state.unlink()
    save = torch.save

    def interrupted(content: dict[str, object], file: io.BytesIO) -> None:
        save(content, file)
        if len(content["losses"]) == 4:  # type: ignore[arg-type]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_one(job)
    again = train_one(job)
    after_its_last_epoch = train_one(job)
    for key in ("plain", "flips", "training_loss"):
        assert after_its_last_epoch[key] == again[key] == whole[key]
    assert len(again["images_per_second"]) == 10
