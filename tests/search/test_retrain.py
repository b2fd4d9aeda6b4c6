import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from safetensors.torch import load_file

from data.dataset import load_dataset
from data.split import split_for_training, whole_for_training
from model.evaluate import accuracies
from model.exported import load
from model.train import train
from model.trial import Diverged, EpochResult, TrialContext
from search.prepare import Prepared
from search.retrain import retrain
from search.run_export import export_study
from studies.config import load_study_file
from studies.export import write_export
from studies.ownership import OwnedStorage
from studies.results import BEST_EPOCH, SEED
from studies.storage import open_storage
from studies.study import best_record, create_or_continue, open_study

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

CPU = torch.device("cpu")
RATES = FloatDistribution(1e-4, 1e30, log=True)


def searched(storage: OwnedStorage, cache: Path, rate: float) -> Prepared:
    """A study of 400 training and 100 test images, with one complete trial of this rate."""
    whole = load_dataset("cifar10-mini", cache)
    dataset = replace(
        whole,
        train=whole.train.select(torch.arange(0, 4800, 12)),
        test=whole.test.select(torch.arange(0, len(whole.test), len(whole.test) // 100)[:100]),
    )
    config = load_study_file(
        "quickstart",
        {
            "trial": {"epochs": 2, "precision": "fp32"},
            "space": {"learning_rate": {"low": 1e-4, "high": 1e30, "log": True}, "width": 4},
        },
    )
    opened, is_new = create_or_continue(storage, config, whole.digest, [])
    opened.study.add_trial(
        optuna.trial.create_trial(
            value=0.5,
            params={"learning_rate": rate, "width": 4},
            distributions={"learning_rate": RATES, "width": CategoricalDistribution((4,))},
            intermediate_values={1: 0.5, 2: 0.4},
            user_attrs={SEED: 7, BEST_EPOCH: 1},
        )
    )
    return Prepared(opened, dataset, split_for_training(dataset, 0.1, 0), is_new)


@pytest.fixture
def storage(tmp_path: Path) -> OwnedStorage:
    return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


def test_the_last_epoch_on_all_images_is_written_and_the_test_images_looked_at(
    storage: OwnedStorage, data_cache: Path, tmp_path: Path
) -> None:
    prepared = searched(storage, data_cache, 0.01)
    output = tmp_path / "whole"
    started = time.monotonic()
    finished = retrain(prepared, best_record(prepared.opened), CPU)
    elapsed = time.monotonic() - started
    write_export(output, finished.model)

    data = whole_for_training(prepared.dataset)
    context = TrialContext(data, CPU, epochs=2, seed=7, precision="fp32")
    *_, last = train({"learning_rate": 0.01, "width": 4}, context)
    written = load_file(output / "model.safetensors")
    for name, tensor in last.weights.items():
        assert torch.equal(tensor, written[name]), name

    classifier = load(output)
    assert finished.test == accuracies(
        classifier.model, prepared.dataset.test, classifier.normalisation
    )
    trial = json.loads((output / "trial.json").read_text())
    assert trial["trained_on"] == "train+validation"
    assert finished.test
    assert trial["test_accuracy"] == finished.test.plain
    assert trial["test_accuracy_with_flips"] == finished.test.with_flips
    assert len(trial["training_loss_per_epoch"]) == 2
    assert 0 < trial["training_seconds"] < elapsed
    # Of the last epoch, which took less than both.
    assert trial["images_per_second"] > len(data.train) / trial["training_seconds"]
    assert trial["validation_accuracy"] is None
    assert "validation_accuracy_per_epoch" not in trial
    assert trial["before"]["validation_accuracy_per_epoch"] == [0.5, 0.4]
    assert trial["before"]["best_epoch"] == 1


def test_an_interrupted_training_writes_nothing(
    storage: OwnedStorage, data_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Mapping[str, Any], __: TrialContext) -> Iterator[EpochResult]:
        yield EpochResult(1, float("nan"), 1.0, 100.0, {})
        raise KeyboardInterrupt

    searched(storage, data_cache, 0.01)
    monkeypatch.setattr("search.retrain.train", interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        export_study(
            open_study("quickstart", storage),
            tmp_path / "whole",
            data_cache,
            on_validation_too=True,
        )
    assert sorted(tmp_path.iterdir()) == before


def test_weights_that_the_last_step_made_infinite_are_not_written(
    storage: OwnedStorage, data_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(_: Mapping[str, Any], __: TrialContext) -> Iterator[EpochResult]:
        yield EpochResult(1, float("nan"), 1.0, 100.0, {"weight": torch.tensor(float("inf"))})

    prepared = searched(storage, data_cache, 0.01)
    monkeypatch.setattr("search.retrain.train", infinite)
    with pytest.raises(Diverged, match="the weights were no longer finite after epoch 1"):
        retrain(prepared, best_record(prepared.opened), CPU)


def test_a_training_that_diverges_is_one_line_and_exit_code_1(
    storage: OwnedStorage, hpsearch: Hpsearch, data_cache: Path, tmp_path: Path
) -> None:
    searched(storage, data_cache, 1e30)
    url = f"sqlite:///{tmp_path / 'a.db'}"
    result = hpsearch(
        *("export", "quickstart", "--on", "train+validation", "--output", "whole"),
        *("--storage", url, "--directory", data_cache),
    )
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if not line[:2].isdigit()]
    assert said == [
        "hpsearch: with the validation images too, the training diverged: the training loss was "
        "no longer finite in epoch 1, by step 16"
    ]
    assert not (tmp_path / "whole").exists()
