"""`hpsearch confirm`, with real retrainings."""

import json
import re
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.exported import load

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]
Status = Callable[..., dict[str, Any]]

STUDY = """
name = "tiny"
[data]
source = "{few_images}"
validation_fraction = 0.5
[trial]
epochs = 2
[space]
learning_rate = [1e-3, 1e-2]
width = 4
[sampler]
name = "grid"
[pruner]
name = "none"
[budget]
trials = 3
"""


def test_confirm_finds_the_winner_once_and_export_prefers_it(
    hpsearch: Hpsearch, status: Status, few_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(STUDY.format(few_images=few_images))
    url = f"sqlite:///{tmp_path / 'a.db'}"
    assert hpsearch("run", "tiny.toml", "--workers", 1, HPSEARCH_STORAGE=url).returncode == 0

    unknown = hpsearch("confirm", "nope", HPSEARCH_STORAGE=url)
    assert unknown.returncode == 2
    assert unknown.stderr.strip() == "hpsearch: no study 'nope' in this storage; there: tiny"

    options = ("--seeds", 2, "--workers", 2, "--grace", 5, "--storage-patience", 30)
    first = hpsearch("confirm", "tiny", *options, HPSEARCH_STORAGE=url)
    assert first.returncode == 0, first.stderr
    found = status("tiny-confirm", url)
    assert found["complete"] == found["finished"] == 4
    left = status("tiny", url)
    assert left["finished"] == 3, "the search itself is left as it was"

    values: dict[float, list[float]] = {}
    for trial in found["top"]:
        values.setdefault(trial["parameters"]["learning_rate"], []).append(trial["value"])
    means = {rate: statistics.mean(accuracies) for rate, accuracies in values.items()}
    winner = max(means, key=lambda rate: means[rate])
    assert f"{means[winner]:.2%}" in first.stdout
    assert left["confirmed"]["mean"] == pytest.approx(means[winner])
    said = hpsearch("status", "tiny", HPSEARCH_STORAGE=url).stdout
    assert said.splitlines()[-1].startswith(f"confirmed: trial {left['confirmed']['trial']}, ")
    assert "test accuracy" in first.stdout
    assert ("95% confidence interval" in first.stdout) == (winner != 1e-3), "not with itself"

    second = hpsearch("confirm", "tiny", "--seeds", 2, HPSEARCH_STORAGE=url)
    assert second.returncode == 0, second.stderr
    assert "epoch 1 of" not in second.stderr, "nothing is trained again"
    assert second.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]

    exported = hpsearch("export", "tiny", "--output", "best", HPSEARCH_STORAGE=url)
    assert exported.returncode == 0, exported.stderr
    description = json.loads((tmp_path / "best" / "trial.json").read_text())
    assert description["study"] == "tiny-confirm"
    assert description["parameters"]["learning_rate"] == winner
    confirmation = description["confirmation"]
    assert confirmation["winner"]["mean"] == pytest.approx(means[winner])
    shown = re.search(r"test accuracy ([\d.]+)% ± ([\d.]+)%", first.stdout)
    assert shown
    assert float(shown[1]) == pytest.approx(100 * confirmation["test"]["mean"], abs=0.01)
    assert f"{confirmation['test']['mean']:.2%}" in (tmp_path / "best" / "README.md").read_text()

    whole = ("export", "tiny", "--output", "whole", "--on", "train+validation")
    anew = hpsearch(*whole, HPSEARCH_STORAGE=url)
    assert anew.returncode == 0, anew.stderr
    assert "anew on 400 training and validation images" in anew.stderr
    assert "epoch 2 of 2, loss" in anew.stderr
    retrained = json.loads((tmp_path / "whole" / "trial.json").read_text())
    assert (retrained["study"], retrained["trial"]) == ("tiny-confirm", description["trial"])
    assert retrained["parameters"] == description["parameters"]
    assert retrained["seed"] == description["seed"]
    assert retrained["validation_accuracy"] is None
    assert retrained["before"]["validation_accuracy"] == description["validation_accuracy"]
    assert retrained["before"]["confirmation"] == confirmation
    assert f"images, test accuracy {retrained['test_accuracy']:.2%}" in anew.stdout
    assert load(tmp_path / "whole").classes == tuple(retrained["data"]["classes"])
