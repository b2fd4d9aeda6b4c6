"""`hpsearch replay`, with the command."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import torch

from search.device import dtype_name
from studies.storage import open_storage
from studies.study import open_study
from tests.forked import HPSEARCH

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

STUDY = """
name = "tiny"
[data]
source = "{few_images}"
validation_fraction = 0.5
[trial]
epochs = 2
[space]
learning_rate = [1e-2]
width = 4
augmentation = "flip+crop+cutout"
[budget]
trials = 1
"""


def test_a_trial_that_was_interrupted_is_as_one_that_was_not(
    hpsearch: Hpsearch, few_images: Path, tmp_path: Path
) -> None:
    """Its curve goes on after its last epoch, and is that of a training in one go."""
    (tmp_path / "tiny.toml").write_text(
        STUDY.format(few_images=few_images).replace("epochs = 2", "epochs = 9")
    )
    url = f"sqlite:///{tmp_path / 'a.db'}"
    command = [HPSEARCH, "worker", "tiny.toml", "--directory", "var", "--storage", url]
    worker = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert worker.stderr is not None
    for line in worker.stderr:
        if "epoch 2 of 9" in line:
            break
    worker.terminate()
    worker.communicate(timeout=60)
    assert worker.returncode == 143
    again = hpsearch("worker", "tiny", HPSEARCH_STORAGE=url)
    assert again.returncode == 0, again.stderr
    assert re.search(r"trial 0: goes on after epoch \d+\n", again.stderr)
    assert "epoch 2 of 9" not in again.stderr
    replayed = hpsearch("replay", "tiny", "--trial", 0, "--json", HPSEARCH_STORAGE=url)
    assert replayed.returncode == 0, replayed.stdout
    found = json.loads(replayed.stdout)
    assert found["identical"]
    assert len(found["recorded"]) == 9


def test_a_trial_is_the_same_again_and_another_curve_is_told_from_it(
    hpsearch: Hpsearch, few_images: Path, tmp_path: Path
) -> None:
    by_hand = STUDY.replace("width = 4", 'width = 4\nlayers = "scratch"')
    (tmp_path / "tiny.toml").write_text(by_hand.format(few_images=few_images))
    url = f"sqlite:///{tmp_path / 'a.db'}"
    searched = hpsearch("run", "tiny.toml", "--workers", 1, HPSEARCH_STORAGE=url)
    assert searched.returncode == 0, searched.stderr

    again = hpsearch("replay", "tiny", "--trial", 0, "--json", HPSEARCH_STORAGE=url)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["identical"]
    assert len(found["replayed"]) == 2
    assert found["differences"] == []

    study = open_study("tiny", open_storage(url)).study
    (trial,) = study.get_trials()
    dtype = dtype_name("auto", torch.device("cpu"))
    assert trial.user_attrs["dtype"] == dtype
    study.add_trial(
        optuna.create_trial(
            value=0.5,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, "device": "NVIDIA A100", "dtype": "float16"},
            intermediate_values={1: trial.intermediate_values[1], 2: 0.5},
        )
    )
    other = hpsearch("replay", "tiny", "--trial", 1, HPSEARCH_STORAGE=url)
    assert other.returncode == 1
    assert "trial 1: not identical; the largest difference is" in other.stdout
    assert "device: then NVIDIA A100, now cpu" in other.stdout
    assert f"dtype: then float16, now {dtype}" in other.stdout

    unknown = hpsearch("replay", "tiny", "--trial", 7, HPSEARCH_STORAGE=url)
    assert unknown.returncode == 2
    assert unknown.stderr.strip() == "hpsearch: study 'tiny' has no trial 7; it has 2, from 0 on"
