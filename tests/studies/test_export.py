import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.errors import UserError
from studies import export
from studies.export import check_output, readme, write_export

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3)}
DESCRIPTION: dict[str, Any] = {
    "study": "flowers",
    "trial": 7,
    "parameters": {"learning_rate": 0.01, "optimizer": "sgd"},
    "validation_accuracy": 0.75,
    "validation_accuracy_per_epoch": [0.5, 0.75],
    "best_epoch": 2,
    "test_accuracy": 0.7,
    "test_accuracy_with_flips": 0.72,
    "data": {"source": "photos", "classes": ["rose", "tulip"]},
}


def test_an_export_holds_weights_description_and_text(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "best"
    write_export(output, WEIGHTS, DESCRIPTION)
    assert torch.equal(load_file(output / "model.safetensors")["a"], WEIGHTS["a"])
    assert json.loads((output / "trial.json").read_text()) == DESCRIPTION
    assert "75.00%" in (output / "README.md").read_text()
    assert [item.name for item in output.parent.iterdir()] == ["best"]


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    write_export(tmp_path / "best", WEIGHTS, DESCRIPTION)
    write_export(tmp_path / "best", WEIGHTS, {**DESCRIPTION, "trial": 8})
    assert json.loads((tmp_path / "best" / "trial.json").read_text())["trial"] == 8
    assert [item.name for item in tmp_path.iterdir()] == ["best"]


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not an exported model"):
        write_export(tmp_path, WEIGHTS, DESCRIPTION)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failed_export_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_export(tmp_path / "best", WEIGHTS, DESCRIPTION)

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_sync", full)
    with pytest.raises(UserError, match="No space left"):
        write_export(tmp_path / "best", WEIGHTS, {**DESCRIPTION, "trial": 8})
    assert json.loads((tmp_path / "best" / "trial.json").read_text())["trial"] == 7
    assert [item.name for item in tmp_path.iterdir()] == ["best"]


def test_the_text_says_how_good_it_is_and_how_to_use_it() -> None:
    text = readme(DESCRIPTION, "best")
    assert "test (never seen by the search) | 70.00%" in text
    assert 'load("best")' in text
    assert "hpsearch predict best photo.jpg" in text


@pytest.mark.parametrize(
    ("seeds", "diverged", "lost", "on_validation", "on_test"),
    [
        (1, 0, 0, "validation, 1 seed", "test, 1 seed"),
        (3, 0, 0, "validation, mean of 3 seeds", "test, mean of 3 seeds"),
        (
            3,
            0,
            1,
            "validation, mean of 3 seeds",
            "test, 2 of 3 seeds; the weights of 1 are lost",
        ),
        (
            3,
            1,
            0,
            "validation, mean of 3 seeds, 1 diverged and counted as 0",
            "test, 2 of 3 seeds; 1 diverged",
        ),
        (
            2,
            1,
            0,
            "validation, mean of 2 seeds, 1 diverged and counted as 0",
            "test, 1 of 2 seeds; 1 diverged",
        ),
    ],
)
def test_of_a_confirmed_model_the_text_says_over_how_many_seeds(
    seeds: int, diverged: int, lost: int, on_validation: str, on_test: str
) -> None:
    confirmation = {
        "seeds": seeds,
        "winner": {"mean": 0.65, "diverged": diverged},
        "test": {"mean": 0.6, "std": None, "seeds": seeds - diverged - lost, "lost": lost},
    }
    text = readme({**DESCRIPTION, "confirmation": confirmation}, "best")
    assert f"| {on_validation} | 65.00% |" in text
    assert f"| {on_test} | 60.00% |" in text


def test_of_a_model_trained_anew_the_text_says_whose_accuracy_is_whose() -> None:
    searched = ("validation_accuracy", "validation_accuracy_per_epoch", "best_epoch")
    before = {key: DESCRIPTION[key] for key in searched}
    retrained = {key: value for key, value in DESCRIPTION.items() if key not in searched}
    text = readme({**retrained, "validation_accuracy": None, "before": before}, "best")
    this, that = text.split("| the model before | accuracy |")
    assert "on the training and validation images together, for 2 epochs" in this
    assert "those of the last epoch" in this
    assert "| test (never seen by the search) | 70.00% |" in this
    assert "75.00%" not in this
    assert "| validation, epoch 2 of 2 | 75.00% |" in that
    assert "70.00%" not in that


def test_a_place_that_cannot_be_written_is_named_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder that can be written to"):
        check_output(tmp_path / "file" / "best")
    check_output(tmp_path / "new" / "folder" / "best")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_model_that_hpsearch_cannot_load_is_not_said_to_be_usable() -> None:
    text = readme({**DESCRIPTION, "test_accuracy": None}, "best")
    assert "predict" not in text
    assert "test (" not in text


def test_the_readme_shows_hostile_parameters_as_they_are() -> None:
    hostile = "<script>[x](http://evil)|\x1b[2J\n# big" + "y" * 10_000_000
    text = readme({**DESCRIPTION, "parameters": {hostile: hostile}}, "best")
    assert len(text) < 5000
    assert "<script>" not in text
    assert "[x](http" not in text
    assert "\x1b" not in text
