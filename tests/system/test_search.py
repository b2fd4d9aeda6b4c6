"""The main job, with real processes, real databases and real images."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.dataset import load_dataset
from data.split import split_for_training
from model.evaluate import accuracies, accuracy
from model.exported import load
from studies.config import load_study_file
from tests.conftest import write_own_study_in
from tests.forked import run_hpsearch

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]
Status = Callable[..., dict[str, Any]]

# All but the first of these rates learn nothing, so that the pruner has something to prune; the
# first is the notebook's, so that trial 0 is good.
STUDY = """
name = "tiny"
[data]
validation_fraction = 0.5
[trial]
epochs = 3
[space]
learning_rate = [1e-3, 1e-7, 2e-7, 3e-7, 4e-7, 5e-7, 6e-7, 7e-7, 8e-7, 9e-7]
batch_size = [64, 128]
width = 4
[sampler]
name = "gp"
startup_trials = 2
[pruner]
startup_trials = 1
warmup_epochs = 0
[budget]
trials = 6
[checkpoints]
keep = 1
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(STUDY)
    return file


def test_a_search_ends_with_exactly_its_trials_and_the_best_model(
    hpsearch: Hpsearch, status: Status, study_file: Path, tmp_path: Path
) -> None:
    storage_url = f"sqlite:///{tmp_path / 'a.db'}"
    first = hpsearch("run", study_file, "--trials", 1, "--workers", 1, HPSEARCH_STORAGE=storage_url)
    assert first.returncode == 0, first.stderr
    assert "study 'tiny' created" in first.stdout

    second = hpsearch("run", study_file, "--workers", 2, HPSEARCH_STORAGE=storage_url)
    assert second.returncode == 0, second.stderr
    assert "study 'tiny' continues" in second.stdout
    assert "1 trial finished so far" in second.stdout

    found = status("tiny", storage_url)
    assert found["finished"] == 6
    assert found["complete"] + found["pruned"] == 6
    assert found["pruned"] >= 1
    assert (found["running"], found["failed"]) == (0, 0)
    numbers = [
        int(number)
        for number in re.findall(r" trial (\d+): learning_rate", first.stderr + second.stderr)
    ]
    assert sorted(numbers) == list(range(6)), "each trial was run once"
    workers = {line.split()[1] for line in second.stderr.splitlines() if "epoch 1 of" in line}
    assert len(workers) == 2

    (model,) = re.findall(r"^model: (.*)$", second.stdout, flags=re.MULTILINE)
    exported = tmp_path / model
    trial = json.loads((exported / "trial.json").read_text())
    best = found["best"]
    assert trial["trial"] == best["number"]
    assert trial["validation_accuracy"] == best["value"] == max(best["accuracies"])
    assert trial["parameters"]["learning_rate"] == best["parameters"]["learning_rate"] == 1e-3
    checkpoints = list(exported.parent.glob("checkpoints/*.safetensors"))
    assert len(checkpoints) == 1, "only the best one is kept"

    # Measured once more, from the folder alone.
    config = load_study_file(str(study_file))
    dataset = load_dataset("cifar10-mini", tmp_path / "var")
    data = split_for_training(dataset, config.data.validation_fraction, config.seed)
    classifier = load(exported)
    torch.set_num_threads(1)
    assert accuracy(classifier.model, data.validation, data.normalisation) == best["value"]
    test = accuracies(classifier.model, dataset.test, data.normalisation)
    assert test.plain == trial["test_accuracy"]
    assert test.with_flips == trial["test_accuracy_with_flips"]
    assert trial["test_accuracy"] > 0.15, "better than chance"


QUICKSTART = ("--trials", 1, "--workers", 1, "--set", "space.width=4", "--set", "trial.epochs=1")


@pytest.fixture(scope="module")
def searched_once(tmp_path_factory: pytest.TempPathFactory, few_images: Path) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    where = ("--data", few_images, "--tensorboard", "events")
    result = run_hpsearch(folder, "run", "quickstart", *QUICKSTART, *where)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def searched(searched_once: Path, tmp_path: Path) -> None:
    """The quickstart's first trial has ended."""
    shutil.copytree(searched_once, tmp_path, dirs_exist_ok=True)


@pytest.mark.usefixtures("searched")
def test_the_first_trial_is_the_notebook_s(status: Status, tmp_path: Path) -> None:
    best = status("quickstart", f"sqlite:///{tmp_path / 'hpsearch.db'}")["best"]
    parameters = best["parameters"]
    assert best["number"] == 0
    assert (parameters["optimizer"], parameters["learning_rate"]) == ("adam", 1e-3)
    assert (parameters["batch_size"], parameters["augmentation"]) == (64, "flip+resized-crop")
    assert list((tmp_path / "events" / "quickstart" / "trial-0000").glob("*tfevents*"))


@pytest.mark.usefixtures("searched")
def test_a_finished_study_is_not_searched_again(hpsearch: Hpsearch, few_images: Path) -> None:
    again = hpsearch("run", "quickstart", *QUICKSTART, "--data", few_images)
    renamed = hpsearch("run", "quickstart", "--name", "other", *QUICKSTART, "--data", few_images)
    assert renamed.returncode == 0, renamed.stderr
    continued = hpsearch("run", "other")
    assert continued.returncode == 0, continued.stderr
    assert "study 'other' continues" in continued.stdout
    assert again.returncode == 0, again.stderr
    assert "continues" in again.stdout
    assert "epoch 1" not in again.stderr
    assert "best: trial 0" in again.stdout


OBJECTIVES = """
import os
import time
from model.trial import Diverged, EpochResult

def curve(parameters, context):
    for epoch in range(1, context.epochs + 1):
        if parameters["x"] == "raises" and epoch == 2:
            raise RuntimeError("out of luck")
        if parameters["x"] == "diverges" and epoch == 2:
            raise Diverged("the loss was nan in epoch 2")
        yield EpochResult(epoch, 0.1 * epoch, 1.0, 100.0, {})

def slow(parameters, context):
    for epoch in range(1, context.epochs + 1):
        time.sleep(0.5)
        yield EpochResult(epoch, 0.1, 1.0, 100.0, {})

def robbed(parameters, context):
    yield EpochResult(1, 0.1, 1.0, 100.0, {})
    if parameters["x"] != "works":
        import optuna
        storage = optuna.storages.RDBStorage(os.environ["HPSEARCH_STORAGE"])
        for trial in optuna.load_study(study_name="own", storage=storage).trials:
            if trial.state == optuna.trial.TrialState.RUNNING:
                storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        if parameters["x"] == "diverges":
            raise Diverged("when it was no longer its own")
    yield EpochResult(2, 0.1, 1.0, 100.0, {})
    yield EpochResult(3, 0.1, 1.0, 100.0, {})
"""

OWN_STUDY = """
name = "own"
[trial]
epochs = 3
objective = "objectives:curve"
[space]
x = ["works", "raises", "diverges"]
[sampler]
name = "grid"
[pruner]
name = "none"
[budget]
trials = 3
"""


@pytest.fixture
def own_study(write_own_study: Callable[[str, str], Path]) -> Path:
    return write_own_study(OBJECTIVES, OWN_STUDY)


@pytest.fixture(scope="module")
def own_study_once(
    tmp_path_factory: pytest.TempPathFactory, few_images: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("own")
    file = write_own_study_in(folder, OBJECTIVES, OWN_STUDY, few_images)
    return folder, run_hpsearch(folder, "run", file, "--workers", 1)


@pytest.fixture
def own_study_searched(
    own_study_once: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> subprocess.CompletedProcess[str]:
    """What a search with an objective of one's own, `own.toml`, has printed."""
    folder, result = own_study_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return result


def test_a_trial_that_raises_or_diverges_is_recorded_and_the_search_goes_on(
    own_study_searched: subprocess.CompletedProcess[str], status: Status, tmp_path: Path
) -> None:
    result = own_study_searched
    assert result.returncode == 0, result.stderr
    found = status("own", f"sqlite:///{tmp_path / 'hpsearch.db'}")
    assert (found["complete"], found["diverged"], found["failed"]) == (1, 1, 1)
    assert "failed: RuntimeError: out of luck" in result.stderr
    assert "diverged: the loss was nan in epoch 2" in result.stderr
    assert found["best"]["parameters"] == {"x": "works"}


@pytest.mark.usefixtures("own_study_searched")
def test_an_objective_of_one_s_own_is_exported_without_what_is_not_known(
    hpsearch: Hpsearch, tmp_path: Path
) -> None:
    result = hpsearch("export", "own", "--output", "best")
    assert result.returncode == 0, result.stderr
    trial = json.loads((tmp_path / "best" / "trial.json").read_text())
    assert trial["test_accuracy"] is None
    assert trial["objective"] == "objectives:curve"
    assert "replaced" not in result.stderr
    again = hpsearch("export", "own", "--output", "best")
    number = trial["trial"]
    assert f"best: the model of trial {number} of study 'own' is replaced" in again.stderr


@pytest.mark.usefixtures("own_study_searched")
def test_an_objective_of_one_s_own_is_not_trained_anew(hpsearch: Hpsearch, tmp_path: Path) -> None:
    result = hpsearch("export", "own", "--on", "train+validation", "--output", "best")
    assert result.returncode == 2
    assert result.stderr == (
        "hpsearch: study 'own' runs 'objectives:curve': --on train+validation knows models of "
        "'model.train:train' alone\n"
    )
    assert not (tmp_path / "best").exists()


@pytest.mark.usefixtures("own_study_searched")
def test_no_command_runs_code_that_only_the_database_names(hpsearch: Hpsearch) -> None:
    confirmed = hpsearch("confirm", "own")
    assert confirmed.returncode == 2
    assert "give its study file instead of its name" in confirmed.stderr
    by_file = hpsearch("confirm", "own.toml", "--top", 1, "--seeds", 1, "--workers", 1)
    assert by_file.returncode == 0, by_file.stderr
    refused = hpsearch("worker", "own")
    assert refused.returncode == 2
    assert "--allow-objective objectives:curve" in refused.stderr
    assert "Traceback" not in refused.stderr
    by_name = hpsearch("run", "own")
    assert by_name.returncode == 2
    assert "give its study file instead of its name" in by_name.stderr
    allowed = hpsearch("worker", "own", "--allow-objective", "objectives:curve")
    assert allowed.returncode == 0, allowed.stderr


def test_a_search_in_which_every_trial_fails_ends_with_the_reason(
    hpsearch: Hpsearch, own_study: Path
) -> None:
    settings = ("--set", "space.x=raises", "--set", "sampler.name=random", "--name", "hopeless")
    result = hpsearch("run", own_study, "--workers", 1, *settings)
    assert result.returncode == 1
    assert "the last 10 trials all failed; trial 9: RuntimeError: out of luck" in result.stderr


def test_a_worker_whose_trial_was_taken_for_dead_goes_on_with_another(
    hpsearch: Hpsearch, status: Status, own_study: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    own_study.write_text(own_study.read_text().replace(":curve", ":robbed"))
    result = hpsearch("run", own_study, "--workers", 1, "--storage", url)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("was taken for dead") == 2
    assert "Traceback" not in result.stderr
    found = status("own", url)
    assert (found["complete"], found["failed"], found["running"]) == (1, 2, 0)


def test_a_search_in_which_every_trial_failed_can_be_tried_again_once_it_is_mended(
    hpsearch: Hpsearch, status: Status, own_study: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    arguments = ("run", own_study, "--workers", 1, "--storage", url)
    settings = ("--set", "space.x=raises", "--set", "sampler.name=random")
    assert hpsearch(*arguments, *settings).returncode == 1
    objectives = tmp_path / "objectives.py"
    objectives.write_text(objectives.read_text().replace("raise RuntimeError", "RuntimeError"))
    mended = hpsearch(*arguments, *settings)
    assert mended.returncode == 0, mended.stderr
    assert status("own", url)["complete"] == 3


def test_minutes_end_a_search_that_has_no_number_of_trials(
    hpsearch: Hpsearch, status: Status, own_study: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    study = own_study.read_text().replace("trials = 3", "minutes = 0.03")
    study = study.replace('name = "grid"', 'name = "random"').replace(":curve", ":slow")
    own_study.write_text(study)
    result = hpsearch("run", own_study, "--workers", 1, "--storage", url)
    assert result.returncode == 0, result.stderr
    assert "the time is up" in result.stderr
    found = status("own", url)
    assert found["finished"] >= 1
    assert found["running"] == 0


@pytest.mark.usefixtures("searched")
def test_the_python_that_the_exported_readme_shows_works(
    hpsearch: Hpsearch, few_images: Path, tmp_path: Path
) -> None:
    result = hpsearch("export", "quickstart", "--output", "best")
    assert result.returncode == 0, result.stderr
    readme = (tmp_path / "best" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5

    dataset = load_dataset(str(few_images), tmp_path / "var")
    pixels = dataset.test.images[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"\w+ \d+\.\d%\n", ran.stdout)

    predicted = hpsearch("predict", "best", "photo.jpg")
    assert predicted.stdout == f"photo.jpg: {ran.stdout}"
