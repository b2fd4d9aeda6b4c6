"""Exports of a real study: which trials, in which forms, and that what is written works."""

import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from PIL import Image

from data.dataset import load_dataset
from data.errors import UserError
from data.split import split_for_training
from model.evaluate import accuracies, accuracy
from model.exported import load
from model.hyperparameters import Hyperparameters
from model.train import build_model
from search.export import Exported, describe
from search.finished import COMPARED, Graphs
from search.run_export import export_study
from studies.checkpoints import Checkpoint, open_checkpoints, weights_name
from studies.config import load_study_file
from studies.ownership import OwnedStorage
from studies.results import BEST_EPOCH, SEED
from studies.storage import open_storage
from studies.study import OpenedStudy, create_or_continue

WIDTHS = (2, 3, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def storage(root: Path) -> OwnedStorage:
    return open_storage(f"sqlite:///{root / 'a.db'}", create=True)


@pytest.fixture(scope="module")
def study(storage: OwnedStorage, root: Path) -> OpenedStudy:
    """Trials 0, 1 and 2 are complete with their weights, 3 without them, and 4 is pruned."""
    config = load_study_file("quickstart", {"space": {"width": [2, 3, 4]}, "start": []})
    dataset = load_dataset("cifar10-mini", root)
    data = split_for_training(dataset, config.data.validation_fraction, config.seed)
    opened, _ = create_or_continue(storage, config, dataset.digest, [])
    checkpoints = open_checkpoints(opened, root, None)
    torch.manual_seed(1)
    for number, width in enumerate(WIDTHS):
        network = build_model(Hyperparameters(width=width), 10)
        value = accuracy(network, data.validation, data.normalisation)
        _add(opened, value, width, TrialState.COMPLETE)
        checkpoints.save(number, Checkpoint(network.state_dict(), 1, value))
    _add(opened, 0.0, 2, TrialState.COMPLETE)
    _add(opened, 0.5, 4, TrialState.PRUNED)
    return opened


def _add(opened: OpenedStudy, value: float, width: int, state: TrialState) -> None:
    opened.study.add_trial(
        optuna.trial.create_trial(
            state=state,
            value=value,
            params={"width": width},
            distributions={"width": CategoricalDistribution(WIDTHS)},
            intermediate_values={1: value},
            user_attrs={SEED: 7, BEST_EPOCH: 1},
        )
    )


def export(opened: OpenedStudy, root: Path, output: Path, **options: Any) -> list[Exported]:
    return export_study(opened, output, root, **options)


def description(folder: Path) -> Any:
    return json.loads((folder / "trial.json").read_text())


@pytest.mark.parametrize(
    ("form", "file", "preprocessing"),
    [("onnx", "model.onnx", True), ("torch-export", "model.pt2", False)],
)
def test_the_python_of_the_model_card_works_in_every_form(
    study: OpenedStudy,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    file: str,
    preprocessing: bool,
) -> None:
    graphs = Graphs(frozenset({form}), preprocessing)
    (exported,) = export(study, root, tmp_path / "two", trial=2, graphs=graphs)
    far = exported.differences
    assert far.keys() == {"model.safetensors", file}
    assert far["model.safetensors"] == 0
    assert max(far.values()) < 1e-5
    assert f"of training images: {file} {far[file]:.2g}\n" in describe(exported)
    found = description(tmp_path / "two")["files"]
    assert found[file] == {
        "largest_difference": far[file],
        "images": COMPARED,
        "preprocessing": preprocessing,
    }

    image = load_dataset("cifar10-mini", root).test.images[5]
    # As large as they come, and without loss.
    large = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((90, 70))
    large.save(tmp_path / "photo.jpg", format="PNG")
    monkeypatch.chdir(tmp_path)
    expected = load("two").predict(["photo.jpg"])[0]
    codes = re.findall(r"```python\n(.*?)```", (tmp_path / "two" / "README.md").read_text(), re.S)
    assert len(codes) == 2
    for code in codes:
        names: dict[str, Any] = {}
        exec(code, names)
        assert capsys.readouterr().out.split()[0] == expected.label
        if "outputs" in names:
            outputs = torch.from_numpy(names["outputs"])
            likely = outputs if preprocessing else outputs.softmax(dim=1)
            assert float(likely.max()) == pytest.approx(expected.probability, abs=1e-5)


def test_the_best_ones_are_written_best_first_with_their_own_accuracies(
    study: OpenedStudy, root: Path, tmp_path: Path
) -> None:
    written = export(study, root, tmp_path / "best", best=2)
    trials = study.study.get_trials()[:3]
    ranked = sorted(trials, key=lambda trial: -(trial.value or 0))[:2]
    names = [f"{place}-trial-{trial.number}" for place, trial in enumerate(ranked, start=1)]
    assert sorted(item.name for item in (tmp_path / "best").iterdir()) == names
    assert [item.output.name for item in written] == names
    assert describe(written[1]).startswith(f"2. trial {ranked[1].number}, validation accuracy ")
    test = load_dataset("cifar10-mini", root).test
    for trial, item in zip(ranked, written, strict=True):
        classifier = load(item.output)
        found = accuracies(classifier.model, test, classifier.normalisation)
        stated = description(item.output)
        assert (stated["trial"], stated["validation_accuracy"]) == (trial.number, trial.value)
        assert (stated["test_accuracy"], stated["test_accuracy_with_flips"]) == (
            found.plain,
            found.with_flips,
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trial": 9}, "no trial 9; there: 0 to 4"),
        ({"trial": 4}, "trial 4 is pruned; only those that are complete have a model"),
        ({"trial": 3}, r"no weights of trial 3; the study keeps those of its best 5 .*--on train"),
        ({"best": 4}, r"trials whose weights can be used: 3 .*give --best 3 or fewer"),
        ({"best": 5}, "complete trials: 4; give --best 4 or fewer"),
    ],
)
def test_what_cannot_be_exported_is_said_so_and_an_earlier_export_left(
    study: OpenedStudy, root: Path, tmp_path: Path, options: dict[str, int], said: str
) -> None:
    export(study, root, tmp_path / "best", trial=0)
    with pytest.raises(UserError, match=said):
        export(study, root, tmp_path / "best", **options)
    assert description(tmp_path / "best")["trial"] == 0
    assert [item.name for item in tmp_path.iterdir()] == ["best"]


def test_a_damaged_one_of_the_best_is_named_and_the_next_one_taken(
    study: OpenedStudy, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranked = sorted(study.study.get_trials()[:3], key=lambda trial: -(trial.value or 0))
    file = study.directory(root) / "checkpoints" / weights_name(ranked[0].number)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    written = export(study, root, tmp_path / "best", best=2)
    file.write_bytes(content)
    assert [item.best.number for item in written] == [trial.number for trial in ranked[1:]]
    assert f"the next best is trial {ranked[1].number}" in caplog.text
